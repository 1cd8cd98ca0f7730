//! Tells the linker in which order functions shall lie: those that a start executes together, so that it touches few pages of the program.
//! They are most of what a machine costs the host, and each page that is touched first costs time. The list may be of an older program: names
//! that are no more are passed over, and where it does not fit the program is what it would be without.

use std::env::var;

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
    }
}
