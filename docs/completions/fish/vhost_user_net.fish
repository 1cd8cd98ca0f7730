complete -c vhost_user_net -l net-backend -d 'A network card, and the socket that it is served on' -r
complete -c vhost_user_net -l seccomp -d 'What becomes of a system call that a thread has no need of: true (the program says so and ends), log (the kernel notes it), errno (it fails), or false (nothing is filtered)' -r
complete -c vhost_user_net -l jail -d 'Puts the process into a jail (on, or any of the keys): its own namespaces, a root in which there is nothing but the paths that its command line names, no capabilities, no environment' -r
complete -c vhost_user_net -s h -l help -d 'Print help (see more with \'--help\')'
complete -c vhost_user_net -s V -l version -d 'Print version'
