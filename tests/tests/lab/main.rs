//! Stock Debian kernels, an old one and a current one, under the VMM: told as stories, each a boot or a few, seen from inside and outside.
//!
//! On a host whose KVM cannot run them, each story runs in the lab's outer machine; see [`tests::place`].

mod machine;
