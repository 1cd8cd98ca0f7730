//! Tells the linker how a start shall touch few pages of the program: they are most of what a machine costs the host, and each page that is
//! touched first costs time.
//!
//! Functions that a start executes lie together, in an order that is recorded. The list may be of an older program: names that are no more
//! are passed over, and where it does not fit the program is what it would be without. A test (`tests/tests/order.rs`) tells when that is so.
//!
//! Where pointers are, which a program that can lie anywhere has to set right before anything else, is written as a bit map (DT_RELR): a
//! fiftieth of the table that it would be. The C library reads it from version 2.36 on.

use std::env::var;
use std::ffi::{CStr, c_char};

unsafe extern "C" {
    /// The version of the C library, as `2.36`.
    safe fn gnu_get_libc_version() -> *const c_char;
}

/// Whether the C library that is linked, which is the one that this script runs with, understands the bit map.
fn reads_bit_map() -> bool {
    // SAFETY: the C library's own text, which ends with a zero and is never changed.
    let version = unsafe { CStr::from_ptr(gnu_get_libc_version()) }.to_string_lossy();
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next(), parts.next()) >= (Some(2), Some(36))
}

fn main() {
    println!("cargo::rerun-if-changed=functions.order");
    let says = |name: &str, value: &str| var(name).is_ok_and(|text| text == value);
    // The compiler's own linker (LLD) knows the option; whoever asks for another does without.
    let other =
        var("CARGO_ENCODED_RUSTFLAGS").is_ok_and(|flags| flags.contains("ld=") || flags.contains("linker"));
    if says("PROFILE", "release") && says("TARGET", "x86_64-unknown-linux-gnu") && !other {
        let directory = var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-Wl,--symbol-ordering-file={directory}/functions.order");
        println!("cargo::rustc-link-arg-bins=-Wl,--no-warn-symbol-ordering");
        if reads_bit_map() {
            println!("cargo::rustc-link-arg-bins=-Wl,--pack-dyn-relocs=relr");
        }
    }
}
