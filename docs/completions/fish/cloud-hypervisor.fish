complete -c cloud-hypervisor -l kernel -d 'Kernel to boot: an uncompressed vmlinux with a PVH note, or a bzImage' -r
complete -c cloud-hypervisor -l cmdline -d 'Kernel command line' -r
complete -c cloud-hypervisor -l initramfs -d 'Initial RAM file system' -r
complete -c cloud-hypervisor -l cpus -d 'The machine\'s processors' -r
complete -c cloud-hypervisor -l memory -d 'The machine\'s memory' -r
complete -c cloud-hypervisor -l platform -d 'The machine\'s identity, as SMBIOS tells it to the guest' -r
complete -c cloud-hypervisor -l metadata -d 'What the guest finds at http://169.254.169.254/ over its network cards, and at http://[fd00:ec2::254]/' -r
complete -c cloud-hypervisor -l pci-segment -d 'The share of the PCI address windows that a segment gets' -r
complete -c cloud-hypervisor -l rate-limit-group -d 'A limit that several disks share: those that name it with rate_limit_group' -r
complete -c cloud-hypervisor -l landlock-rules -d 'A path that a process confined by --landlock or --jail may use besides those that its machine is made of: for what is added later, and for snapshots' -r
complete -c cloud-hypervisor -l console -d 'The paravirtual console (hvc0 in the guest), and where it goes on the host' -r
complete -c cloud-hypervisor -l disk -d 'A disk on an image file or block device of the host' -r
complete -c cloud-hypervisor -l net -d 'A network device on a tap of the host' -r
complete -c cloud-hypervisor -l rng -d 'The source of the guest\'s random numbers' -r
complete -c cloud-hypervisor -l pmem -d 'A file as persistent memory of the guest\'s (virtio-pmem), which it can map instead of reading blocks' -r
complete -c cloud-hypervisor -l generic-vhost-user -d 'A virtio device of any type that another process serves by vhost-user' -r
complete -c cloud-hypervisor -l fs -d 'A folder of the host that another process (virtiofsd) shows to the guest by vhost-user' -r
complete -c cloud-hypervisor -l vsock -d 'Sockets between guest and host (virtio-vsock)' -r
complete -c cloud-hypervisor -l serial -d 'The serial port: a 16550A UART at port 0x3f8' -r
complete -c cloud-hypervisor -l debug-console -d 'The debug console: what a guest writes to one port' -r
complete -c cloud-hypervisor -l restore -d 'A saved machine to go on with' -r
complete -c cloud-hypervisor -l api-socket -d 'UNIX socket for requests (see ch-remote); a bare path works too' -r
complete -c cloud-hypervisor -l event-monitor -d 'Writes a JSON record of each event to this file' -r
complete -c cloud-hypervisor -l passt -d 'The passt that serves network cards with user=on, found on the PATH if it is not said; given at start so that such cards may come over the API later' -r
complete -c cloud-hypervisor -l seccomp -d 'What becomes of a system call that a thread has no need of: true (the program says so and ends), log (the kernel notes it), errno (it fails), or false (nothing is filtered)' -r
complete -c cloud-hypervisor -l jail -d 'Puts the process into a jail (on, or any of the keys): its own namespaces, a root in which there is nothing but the paths that its command line names, no capabilities, no environment' -r
complete -c cloud-hypervisor -l log-file -d 'Logs to this file instead of standard error' -r
complete -c cloud-hypervisor -l log-format -d 'Format of log records' -r
complete -c cloud-hypervisor -l landlock -d 'Keeps the process to the paths of its machine (Landlock); a host that cannot do it is an error'
complete -c cloud-hypervisor -l no-shutdown -d 'Keeps the process when the guest powers itself off; needs the API to go on'
complete -c cloud-hypervisor -l check-host -d 'Says whether this host can run guests, what is missing and how to mend it'
complete -c cloud-hypervisor -s V -l version -d 'Prints the version; with -v also the compiled-in features'
complete -c cloud-hypervisor -s v -d 'Logs more: once for information, twice for debugging, three times for everything'
complete -c cloud-hypervisor -s h -l help -d 'Print help (see more with \'--help\')'
