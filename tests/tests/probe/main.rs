//! The machine and its devices seen by a guest of our own: each test starts the VMM with the probe as its kernel.

mod confined;
mod devices;
mod disk;
mod ends;
mod folder;
mod formats;
mod golden;
mod hostile;
mod hotplug;
mod landlock;
mod loaded;
mod machine;
mod metadata;
mod network;
mod passt;
mod pause;
mod pmem;
mod promised;
mod reboot;
mod restore;
mod sockets;
mod storm;
mod trouble;
mod vhost_user;
mod vhost_user_net;
