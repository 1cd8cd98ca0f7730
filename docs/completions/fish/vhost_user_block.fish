complete -c vhost_user_block -l block-backend -d 'A disk, and the socket that it is served on' -r
complete -c vhost_user_block -s h -l help -d 'Print help (see more with \'--help\')'
complete -c vhost_user_block -s V -l version -d 'Print version'
