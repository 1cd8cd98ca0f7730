# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_ch_remote_global_optspecs
    string join \n api-socket= h/help V/version
end

function __fish_ch_remote_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_ch_remote_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_ch_remote_using_subcommand
    set -l cmd (__fish_ch_remote_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c ch-remote -n "__fish_ch_remote_needs_command" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_needs_command" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -s V -l version -d 'Print version'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "ping" -d 'Ask the VMM for its version and process id'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "confinement" -d 'Show what the kernel keeps the VMM from, thread by thread: filters, ids, capabilities, namespaces'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "info" -d 'Show the machine: its description, state and devices'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "counters" -d 'Show what the machine\'s devices counted'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "create" -d 'Describe a machine, from a JSON file or standard input; boot starts it'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "boot" -d 'Build the described machine and start it'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "pause" -d 'Stop the machine\'s vCPUs and I/O until resume'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "resume" -d 'Let a paused machine continue'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "power-button" -d 'Press the power button; the guest decides what to do'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "nmi" -d 'Send every vCPU a non-maskable interrupt'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "reboot" -d 'Replace the machine by a new one of the same description'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "shutdown" -d 'Stop the machine at once; its description stays'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "delete" -d 'Stop the machine and forget its description'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "add-disk" -d 'Add a device, described as after --disk of cloud-hypervisor'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "add-net" -d 'Add a device, described as after --net of cloud-hypervisor'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "add-pmem" -d 'Add a device, described as after --pmem of cloud-hypervisor'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "add-generic-vhost-user" -d 'Add a device, described as after --generic-vhost-user of cloud-hypervisor'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "add-fs" -d 'Add a device, described as after --fs of cloud-hypervisor'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "add-vsock" -d 'Add a device, described as after --vsock of cloud-hypervisor'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "metadata" -d 'Show the metadata that the guest finds'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "set-metadata" -d 'Replace the metadata that the guest finds, from a JSON file or standard input'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "patch-metadata" -d 'Change part of the metadata by a JSON merge patch (RFC 7396), from a file or standard input'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "remove-device" -d 'Ask the guest to let go of a device; it is removed when the guest has'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "resize-disk" -d 'Change the size of a disk and of its image'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "wait-device" -d 'Wait until the guest uses a device that was added, or has let go of one'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "snapshot" -d 'Save a paused machine into an empty directory'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "restore" -d 'Go on with a saved machine; devices\' flags say what is different now'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "shutdown-vmm" -d 'End the VMM\'s process, stopping the machine first'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "vsock-connect" -d 'Connect standard input and output with a port of the guest\'s, by its vsock device'
complete -c ch-remote -n "__fish_ch_remote_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand ping" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand ping" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand confinement" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand confinement" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand info" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand info" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand counters" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand counters" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand create" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand create" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand boot" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand boot" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand pause" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand pause" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand resume" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand resume" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand power-button" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand power-button" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand nmi" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand nmi" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand reboot" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand reboot" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand shutdown" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand shutdown" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand delete" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand delete" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand add-disk" -l wait -d 'Wait until the guest has done its part, at most this many seconds (10 unless given)' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand add-disk" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand add-disk" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand add-net" -l wait -d 'Wait until the guest has done its part, at most this many seconds (10 unless given)' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand add-net" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand add-net" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand add-pmem" -l wait -d 'Wait until the guest has done its part, at most this many seconds (10 unless given)' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand add-pmem" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand add-pmem" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand add-generic-vhost-user" -l wait -d 'Wait until the guest has done its part, at most this many seconds (10 unless given)' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand add-generic-vhost-user" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand add-generic-vhost-user" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand add-fs" -l wait -d 'Wait until the guest has done its part, at most this many seconds (10 unless given)' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand add-fs" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand add-fs" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand add-vsock" -l wait -d 'Wait until the guest has done its part, at most this many seconds (10 unless given)' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand add-vsock" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand add-vsock" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand metadata" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand metadata" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand set-metadata" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand set-metadata" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand patch-metadata" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand patch-metadata" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand remove-device" -l wait -d 'Wait until the guest has done its part, at most this many seconds (10 unless given)' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand remove-device" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand remove-device" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand resize-disk" -l disk -d 'Name of the disk' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand resize-disk" -l size -d 'New size: a multiple of 512 bytes, or with K, M, G or T (binary)' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand resize-disk" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand resize-disk" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand wait-device" -l until -d 'What to wait for' -r -f -a "ready\t''
removed\t''"
complete -c ch-remote -n "__fish_ch_remote_using_subcommand wait-device" -l timeout -d 'Seconds to wait at most; 10 unless given' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand wait-device" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand wait-device" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand snapshot" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand snapshot" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand restore" -l console -d 'The paravirtual console (hvc0 in the guest), and where it goes on the host' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand restore" -l disk -d 'A disk on an image file or block device of the host' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand restore" -l net -d 'A network device on a tap of the host' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand restore" -l rng -d 'The source of the guest\'s random numbers' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand restore" -l pmem -d 'A file as persistent memory of the guest\'s (virtio-pmem), which it can map instead of reading blocks' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand restore" -l generic-vhost-user -d 'A virtio device of any type that another process serves by vhost-user' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand restore" -l fs -d 'A folder of the host that another process (virtiofsd) shows to the guest by vhost-user' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand restore" -l vsock -d 'Sockets between guest and host (virtio-vsock)' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand restore" -l serial -d 'The serial port: a 16550A UART at port 0x3f8' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand restore" -l debug-console -d 'The debug console: what a guest writes to one port' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand restore" -l metadata -d 'What the guest finds at http://169.254.169.254/ over its network cards, and at http://[fd00:ec2::254]/' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand restore" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand restore" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand shutdown-vmm" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand shutdown-vmm" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand vsock-connect" -l api-socket -d 'UNIX socket that cloud-hypervisor was started with' -r
complete -c ch-remote -n "__fish_ch_remote_using_subcommand vsock-connect" -s h -l help -d 'Print help'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "ping" -d 'Ask the VMM for its version and process id'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "confinement" -d 'Show what the kernel keeps the VMM from, thread by thread: filters, ids, capabilities, namespaces'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "info" -d 'Show the machine: its description, state and devices'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "counters" -d 'Show what the machine\'s devices counted'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "create" -d 'Describe a machine, from a JSON file or standard input; boot starts it'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "boot" -d 'Build the described machine and start it'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "pause" -d 'Stop the machine\'s vCPUs and I/O until resume'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "resume" -d 'Let a paused machine continue'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "power-button" -d 'Press the power button; the guest decides what to do'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "nmi" -d 'Send every vCPU a non-maskable interrupt'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "reboot" -d 'Replace the machine by a new one of the same description'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "shutdown" -d 'Stop the machine at once; its description stays'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "delete" -d 'Stop the machine and forget its description'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "add-disk" -d 'Add a device, described as after --disk of cloud-hypervisor'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "add-net" -d 'Add a device, described as after --net of cloud-hypervisor'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "add-pmem" -d 'Add a device, described as after --pmem of cloud-hypervisor'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "add-generic-vhost-user" -d 'Add a device, described as after --generic-vhost-user of cloud-hypervisor'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "add-fs" -d 'Add a device, described as after --fs of cloud-hypervisor'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "add-vsock" -d 'Add a device, described as after --vsock of cloud-hypervisor'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "metadata" -d 'Show the metadata that the guest finds'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "set-metadata" -d 'Replace the metadata that the guest finds, from a JSON file or standard input'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "patch-metadata" -d 'Change part of the metadata by a JSON merge patch (RFC 7396), from a file or standard input'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "remove-device" -d 'Ask the guest to let go of a device; it is removed when the guest has'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "resize-disk" -d 'Change the size of a disk and of its image'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "wait-device" -d 'Wait until the guest uses a device that was added, or has let go of one'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "snapshot" -d 'Save a paused machine into an empty directory'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "restore" -d 'Go on with a saved machine; devices\' flags say what is different now'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "shutdown-vmm" -d 'End the VMM\'s process, stopping the machine first'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "vsock-connect" -d 'Connect standard input and output with a port of the guest\'s, by its vsock device'
complete -c ch-remote -n "__fish_ch_remote_using_subcommand help; and not __fish_seen_subcommand_from ping confinement info counters create boot pause resume power-button nmi reboot shutdown delete add-disk add-net add-pmem add-generic-vhost-user add-fs add-vsock metadata set-metadata patch-metadata remove-device resize-disk wait-device snapshot restore shutdown-vmm vsock-connect help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
