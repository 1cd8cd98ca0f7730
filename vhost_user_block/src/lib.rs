//! The command line of `vhost_user_block`, and what becomes of it.

mod backend;

use catalog::JailSpec;
use catalog::flags::{self, Flag, Purpose};
use clap::Command;

pub use backend::{BackendSpec, look, open, paths};

const ABOUT: &str = "Serves disks to virtual machines in other processes.

Each --block-backend is a disk on an image, served on a UNIX socket of its own by the vhost-user
protocol. A front end (a VMM) connects to the socket and shares its guest's memory, so that the guest's
requests are carried out from here. One front end at a time is served; when it hangs up, the next one is.

SIGTERM and SIGINT end the program, when it has answered what is under way. SIGHUP has it look at the
sizes of raw images again, and tell the guests. RUST_LOG=info in the environment has it log more.";

const EXAMPLES: &str = "Examples:
  A disk with two queues:
    vhost_user_block --block-backend path=disk.img,socket=/run/disk.sock,num_queues=2

  Two disks, one of them read-only:
    vhost_user_block --block-backend path=a.img,socket=/run/a.sock \\
      --block-backend path=b.img,socket=/run/b.sock,readonly=on

  QEMU as the front end; its guest's memory must be shared:
    qemu-system-x86_64 -object memory-backend-memfd,id=m,size=1G,share=on -m 1G -machine q35,memory-backend=m \\
      -chardev socket,id=c,path=/run/disk.sock,reconnect-ms=1000 -device vhost-user-blk-pci,chardev=c,num-queues=2 ...";

/// The command with its flags and their help.
pub fn command() -> Command {
    let flag = Flag::of::<BackendSpec>(true).arg(Purpose::Help).required(true);
    Command::new("vhost_user_block")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Serves disks to virtual machines in other processes")
        .long_about(ABOUT)
        .after_long_help(EXAMPLES)
        .arg_required_else_help(true)
        .arg(flag)
        .arg(flags::seccomp())
        .arg(JailSpec::arg(Purpose::Help))
}
