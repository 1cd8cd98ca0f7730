//! Snapshots that somebody made on purpose (or that a disk lost bits of): whatever is in them, there is an error and nothing left, or a machine that
//! harms nobody but its own guest. No panic, no hang, no memory without bounds.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bench::root;
use crate::mutation::{Changes, Random};
use crate::namespace::with_network;
use crate::saved::{GOOD, Story, state_text};

/// How long one attempt may take, on a host that has other things to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How much memory the program may have needed, at the most, for the largest file that is read.
pub(crate) const MEMORY_LIMIT: u64 = 1 << 30;
/// The same for a machine that is as it should be: 32 MiB and the program's own. What a refused state took was given back.
const ORDINARY_LIMIT: u64 = 64 << 20;

/// Seconds for changes at random, which the environment variable `VIRGA_HOSTILE_SECONDS` changes: a long run looks at more.
fn seconds() -> u64 {
    std::env::var("VIRGA_HOSTILE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(15)
}

/// What changes begin with; `VIRGA_HOSTILE_SEED` repeats those of another run.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("VIRGA_HOSTILE_SEED").ok().and_then(|text| text.parse().ok());
    let now = || std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_micros() as u64);
    given.unwrap_or_else(now)
}

/// What came of attempts.
#[derive(Debug, Default)]
struct Tally {
    refused: usize,
    restored: usize,
    /// The guest went on so badly that it ended, and the program with it.
    ended: usize,
}

impl Story {
    /// The most memory that the program had so far, in bytes.
    pub(crate) fn most_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.server.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line of memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }

    /// Forgets the most memory that the program had.
    pub(crate) fn forget_memory(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.server.id()), "5").unwrap();
    }

    /// Tries the snapshot in `bad`, lets what comes of it run for a moment, and takes note; whatever came is gone then.
    fn attempt(&mut self, mode: &str, what: &dyn std::fmt::Debug, tally: &mut Tally) {
        let begun = Instant::now();
        let socket = self.server.bench.path("s");
        let ask = |name: &str, body: &Value| {
            let body = if body.is_null() { String::new() } else { body.to_string() };
            tests::ask::ask(&socket, "PUT", name, body.as_bytes())
        };
        let restored = ask("vm.restore", &json!({"source_url": "file://bad", "memory_restore_mode": mode}));
        match restored {
            Some((204, _)) => {
                tally.restored += 1;
                // Any of these may be answered by the end of the program, which is looked at below.
                let resumed = ask("vm.resume", &Value::Null);
                std::thread::sleep(Duration::from_millis(2));
                let deleted = ask("vm.delete", &Value::Null);
                let good =
                    |answer: &Option<(u16, String)>| answer.as_ref().is_none_or(|(status, _)| *status < 500);
                assert!(good(&resumed) && good(&deleted), "{what:?}: {resumed:?} {deleted:?}");
            }
            Some((status, text)) => {
                tally.refused += 1;
                assert!((400..500).contains(&status), "{what:?}: {status} {text}");
            }
            None => {}
        }
        // A program that ends does so soon after its last answer, and until then answers that it is shutting down (409).
        let answers =
            tests::ask::ask(&socket, "GET", "vmm.ping", b"").is_some_and(|(status, _)| status == 200);
        let status = if answers { None } else { Some(self.server.end()) };
        let log = self.server.take_log();
        assert!(!log.contains("panicked"), "{what:?}: {log}");
        if let Some(status) = status {
            tally.ended += 1;
            // A guest may have no better idea than to power its machine off.
            assert!(matches!(status.code(), Some(0 | 1)), "{what:?}: {status} {log}");
        }
        assert!(begun.elapsed() < PATIENCE, "{what:?}: {:?}", begun.elapsed());
        if !answers {
            self.server.start_again();
        }
        self.server.has_no_machine();
    }
}

#[test]
fn states_that_are_changed_at_random() {
    if !root("taps of saved machines") {
        return;
    }
    with_network(|| {
        let mut story = Story::new();
        let seed = seed();
        println!("VIRGA_HOSTILE_SEED={seed}");
        let mut changes = Changes::new(&story.good.state, seed);
        let mut random = Random(seed ^ 1);
        let bad = story.bad();
        let (begun, mut tally, mut count) = (Instant::now(), Tally::default(), 0);
        while begun.elapsed() < Duration::from_secs(seconds()) {
            let changed = changes.next();
            if changed.what.is_empty() {
                continue;
            }
            bad.write_state(&changed.text);
            let mode = ["Mmap", "Copy", "OnDemand"][random.below(3)];
            story.attempt(mode, &(seed, count, &changed.what), &mut tally);
            count += 1;
        }
        let memory = story.most_memory();
        println!(
            "{count} attempts, {} single changes there are: {tally:?}, {} MiB",
            changes.count(),
            memory >> 20
        );
        assert!(memory < MEMORY_LIMIT, "{memory} bytes");
        // And all of it was given back.
        story.forget_memory();
        story.restores(&json!({"source_url": GOOD}));
        let memory = story.most_memory();
        assert!(memory < ORDINARY_LIMIT, "{memory} bytes");
        assert!(tally.refused > 0 && tally.restored > 0, "{tally:?}");
        if tally.ended == 0 {
            story.nothing_is_left();
        }
        story.server.ends_well();
    });
}

/// As large as a text may be, and made of what takes the most memory.
#[test]
fn the_largest_states_take_no_more_memory_than_they_may() {
    if !root("taps of saved machines") {
        return;
    }
    with_network(|| {
        let story = Story::new();
        let bad = story.bad();
        let attempt = |values: String, message: &str| {
            let mut state = story.good.state.clone();
            state["machine"]["body"]["board"]["devices"]["__serial"]["state"]["body"]["received"] =
                "HERE".into();
            bad.write_state(&state_text(&state).replace("\"HERE\"", &values));
            let begun = Instant::now();
            let (status, text) = story.server.ask("PUT", "vm.restore", br#"{"source_url":"file://bad"}"#);
            println!("{:?}, {} MiB: {text:.300}", begun.elapsed(), story.most_memory() >> 20);
            assert!(status == 400 && text.contains(message), "{status} {text}");
            assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
        };
        let list = |value: &str, count: usize| format!("[{value}{}]", format!(",{value}").repeat(count - 1));
        let count = 3 << 20;
        attempt(list("0", count), "received has ");
        attempt(list("[0]", count / 2), "malformed");
        attempt(list("{\"\":0}", count / 6), "malformed");
        let members: Vec<_> = (0..count / 2).map(|n| format!("\"{n:x}\":0")).collect();
        attempt(format!("{{{}}}", members.join(",")), "malformed");
        attempt(format!("\"{}\"", "x".repeat(60 << 20)), "malformed");
        attempt(format!("\"{}\"", "x".repeat(65 << 20)), "bytes, and at most 67108864 are read");
        attempt(list("0", 16 << 20), "are allowed");
        attempt(list("{\"\":0}", 1 << 20), "are allowed");
        attempt(format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)), "malformed");
        let memory = story.most_memory();
        assert!(memory < MEMORY_LIMIT, "{memory} bytes");
        story.ends_well();
    });
}

#[test]
fn a_snapshot_does_not_let_automatic_names_run_out() {
    if !root("taps of saved machines") {
        return;
    }
    with_network(|| {
        let story = Story::new();
        let mut bad = story.bad();
        bad.machine()["next_name"] = u64::MAX.into();
        bad.write();
        story.server.does("vm.restore", &json!({"source_url": "file://bad"}));
        story.server.does("vm.resume", &Value::Null);
        let add = |name: &str| {
            let (status, text) = story.server.ask("PUT", "vm.add-net", b"{}");
            assert!(status == 200 && text.contains(name), "{status} {text}");
        };
        add("\"_net18446744073709551615\"");
        add("\"_net0\"");
        story.server.does("vm.delete", &Value::Null);
        story.ends_well();
    });
}
