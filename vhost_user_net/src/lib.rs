//! The command line of `vhost_user_net`, and what becomes of it.

mod backend;

use catalog::JailSpec;
use catalog::flags::{self, Flag, Purpose};
use clap::Command;

pub use backend::{BackendSpec, Card, ahead, cards, open};

const ABOUT: &str = "Serves network cards on taps to virtual machines in other processes.

Each --net-backend is a network card on a tap of this host, served on a UNIX socket of its own by the
vhost-user protocol. A front end (a VMM) shares its guest's memory, so that frames go between that memory
and the tap from here. One front end at a time is served; when it hangs up, the next one is. With client=on
it is the front end that listens, and is gone to again and again.

The control queue of the card is the front end's. A tap that is made here goes with this program; one that
was there before stays. Making a tap, and giving it an address, needs CAP_NET_ADMIN.

SIGTERM and SIGINT end the program, and SIGHUP does nothing. RUST_LOG=info in the environment has it log more.";

const EXAMPLES: &str = "Examples:
  A card on a tap that is made for it, whose end on this host has the address 192.168.100.1:
    vhost_user_net --net-backend socket=/run/net.sock

  Two pairs of queues on a tap that is made as tap7, with other addresses:
    vhost_user_net --net-backend socket=/run/net.sock,tap=tap7,num_queues=4,ip=10.0.0.1,mask=255.255.0.0

  QEMU as the front end; its guest's memory must be shared:
    qemu-system-x86_64 -object memory-backend-memfd,id=m,size=1G,share=on -m 1G -machine q35,memory-backend=m \\
      -chardev socket,id=c,path=/run/net.sock,reconnect-ms=1000 -netdev vhost-user,id=n,chardev=c,queues=2 \\
      -device virtio-net-pci,netdev=n,mq=on ...";

/// The command with its flags and their help.
pub fn command() -> Command {
    let flag = Flag::of::<BackendSpec>(true).arg(Purpose::Help).required(true);
    Command::new("vhost_user_net")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Serves network cards on taps to virtual machines in other processes")
        .long_about(ABOUT)
        .after_long_help(EXAMPLES)
        .arg_required_else_help(true)
        .arg(flag)
        .arg(flags::seccomp())
        .arg(JailSpec::arg(Purpose::Help))
}
