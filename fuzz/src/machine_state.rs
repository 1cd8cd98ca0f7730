//! What devices save, changed in some places: it is refused, or it makes a device like any other.

use std::sync::LazyLock;

use device::{Device, Node, PlacedPci};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::guest::{Board, Guest, Saved};
use crate::input::Input;
use crate::{Target, devices, json, platform_devices};

/// A function and its device as one document.
#[derive(Serialize, Deserialize)]
struct Document {
    placed: PlacedPci,
    function: Node,
    device: Option<Node>,
}

/// What is saved of what.
struct Case {
    what: What,
    good: Value,
    places: Vec<String>,
}

enum What {
    /// The virtio device of this number.
    Virtio(usize),
    /// The platform's device of this number.
    Platform(usize),
    Ioapic,
    Bridge,
    Ports,
}

fn case(what: What, good: impl Serialize) -> Case {
    let good = serde_json::to_value(good).unwrap();
    Case { what, places: json::places(&good), good }
}

static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let mut cases = Vec::new();
    for (number, make) in devices::scenes().into_iter().enumerate() {
        for used in [false, true] {
            let mut guest = Guest::new(make());
            if used {
                guest.bring_up(u64::MAX);
            }
            let Saved { device, function } = guest.save();
            cases.push(case(What::Virtio(number), Document { placed: guest.placed(), function, device }));
        }
    }
    for (number, device) in platform_devices::all().iter().enumerate() {
        cases.push(case(What::Platform(number), device.save().unwrap()));
    }
    cases.push(case(What::Ioapic, platform_devices::ioapic().save().unwrap()));
    let board = Board::new(Board::ram());
    cases.push(case(What::Bridge, board.segment.save().unwrap()));
    cases.push(case(What::Ports, board.ports.save().unwrap()));
    cases
});

/// Uses a device that took a state.
fn use_platform(device: &dyn Device, input: &mut Input<'_>) {
    device.start().unwrap();
    for _ in 0..16 {
        platform_devices::act(device, input);
    }
    device.stop().unwrap();
    let _node = device.save().unwrap();
}

fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let case = &CASES[input.below(CASES.len())];
    let mut value = case.good.clone();
    json::change(&mut value, &case.places, &mut input);
    match case.what {
        What::Virtio(number) => {
            // By way of text, as it comes from a file.
            let Ok(document) = serde_json::from_str::<Document>(&value.to_string()) else { return };
            let Document { placed, function, device } = document;
            let made = devices::scenes()[number]();
            let Ok(mut guest) = Guest::load(made, Board::ram(), &placed, Saved { device, function }) else {
                return;
            };
            guest.serve();
            for queue in 0..guest.queues() {
                guest.kick(queue);
            }
            drop(guest.save());
            assert_eq!(guest.bring_up(u64::MAX), 0xf, "the device cannot be set up any more");
            guest.board.assert_well();
        }
        What::Platform(number) => {
            let Ok(node) = serde_json::from_str(&value.to_string()) else { return };
            let device = platform_devices::all().swap_remove(number);
            if device.load(node).is_ok() {
                use_platform(&*device, &mut input);
            }
        }
        What::Ioapic => {
            let Ok(node) = serde_json::from_str(&value.to_string()) else { return };
            let device = platform_devices::ioapic();
            if device.load(node).is_ok() {
                device.end_of_interrupt(input.u8());
                use_platform(&device, &mut input);
            }
        }
        What::Bridge => {
            let Ok(node) = serde_json::from_str(&value.to_string()) else { return };
            let board = Board::new(Board::ram());
            if board.segment.load(node).is_ok() {
                board.segment.sync();
                let _node = board.segment.save().unwrap();
            }
        }
        What::Ports => {
            let Ok(node) = serde_json::from_str(&value.to_string()) else { return };
            let board = Board::new(Board::ram());
            let _refused = board.ports.load(node);
        }
    }
}

pub fn target() -> Target {
    Target {
        name: "state",
        about: "saved states of devices, changed in some places",
        length: 128,
        options: &[],
        words: Vec::new,
        seeds: || {
            let mut seeds = Vec::new();
            for (number, case) in CASES.iter().enumerate() {
                for place in (0..case.places.len()).step_by(3) {
                    seeds.push(
                        [&[number as u8, 0][..], &(place as u16).to_le_bytes(), &[0, place as u8 % 10, 12]]
                            .concat(),
                    );
                }
            }
            seeds
        },
        run,
    }
}
