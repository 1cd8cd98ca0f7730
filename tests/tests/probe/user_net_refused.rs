//! Cards with `user=on` that cannot be: what is said of them, and that nothing stays behind.

use std::net::{TcpListener, UdpSocket};

use tests::outside::Outside;
use tests::probe::Guest;

use crate::user_net::{guest, nothing_is_left, unprivileged};

/// What is said of a card that passt cannot serve.
#[track_caller]
fn refused(guest: Guest) -> String {
    let report = guest.run();
    assert!(!report.status.success() && !report.messages.contains("panicked"), "{report}");
    assert!(report.messages.contains("passt"), "{report}");
    nothing_is_left();
    report.messages
}

#[test]
fn a_port_that_is_taken_is_named() {
    for keys in [",forward=[tcp:127.0.0.1:2222:22]", ",forward=[tcp:2223:22,udp:127.0.0.1:2222:22]"] {
        let Some((guest, _outside)) = guest("hello", keys) else { return };
        let _tcp = TcpListener::bind("127.0.0.1:2222").expect("a port of our own network");
        let _udp = UdpSocket::bind("127.0.0.1:2222").expect("a port of our own network");
        let said = refused(guest);
        assert!(said.contains("2222") && said.contains("Address already in use"), "{said}");
    }
}

#[test]
fn an_address_that_is_not_the_hosts_is_named() {
    let Some((guest, _outside)) = guest("hello", ",forward=[tcp:203.0.113.7:2222:22]") else { return };
    let said = refused(guest);
    assert!(said.contains("2222") && said.contains("Cannot assign"), "{said}");
}

#[test]
fn a_privileged_port_is_not_for_a_user_without_privileges() {
    let Some((guest, _outside)) = guest("hello", ",forward=[tcp:80:80]") else { return };
    let said = refused(unprivileged(guest));
    assert!(said.contains("80") && said.contains("Permission denied"), "{said}");
}

#[test]
fn a_program_that_is_no_passt_is_quoted_and_what_is_needed_is_said() {
    let _outside = Outside::new();
    let with = |passt: &str| Guest::new("hello").with(&["--passt", passt, "--net", "user=on"]);
    let missing = refused(with("/nowhere/passt"));
    assert!(missing.contains("/nowhere/passt") && missing.contains("Debian 13"), "{missing}");
    // One that knows no such option, as an old passt, which says so in the same words of the C library's.
    let old = refused(with("/bin/ls"));
    assert!(old.contains("unrecognized option '--vhost-user'") && old.contains("2024_11"), "{old}");
    let failing = refused(with("/bin/false"));
    assert!(failing.contains("passt ended with status 1"), "{failing}");
    // It does not answer, and does not end by itself either.
    let guest = Guest::new("hello");
    let sleeper = guest.file("sleeper");
    // By another process: what somebody has open for writing is not run (ETXTBSY), and programs that other tests start have for a moment
    // all that is open here.
    let script = r#"printf '#!/bin/sh\nexec sleep 1000\n' > "$1" && chmod 755 "$1""#;
    let done = std::process::Command::new("sh").args(["-c", script, "sh"]).arg(&sleeper).status();
    assert!(done.is_ok_and(|status| status.success()), "a program can be written");
    let silent = refused(guest.with(&["--passt", &sleeper.display().to_string(), "--net", "user=on"]));
    assert!(silent.contains("did not answer"), "{silent}");
}
