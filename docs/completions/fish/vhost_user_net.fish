complete -c vhost_user_net -l net-backend -d 'A network card, and the socket that it is served on' -r
complete -c vhost_user_net -l seccomp -d 'What becomes of a system call that a thread has no need of: true (the program says so and ends), log (the kernel notes it), errno (it fails), or false (nothing is filtered)' -r
complete -c vhost_user_net -s h -l help -d 'Print help (see more with \'--help\')'
complete -c vhost_user_net -s V -l version -d 'Print version'
