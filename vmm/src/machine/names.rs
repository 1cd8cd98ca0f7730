//! Names and slots that stay the same as long as a machine is described: over reboots, and whatever is added and removed.

use std::collections::BTreeMap;

/// See the module.
#[derive(Debug, Default)]
pub struct Names {
    /// The number of the next automatic name, of whatever kind.
    next: u64,
    /// Where each device was plugged in: segment and slot.
    places: BTreeMap<String, (u16, u8)>,
}

impl Names {
    /// A new name of a kind: one that is not taken and that no device of this machine ever had automatically.
    pub(super) fn make(&mut self, kind: &str, taken: impl Fn(&str) -> bool) -> String {
        loop {
            let name = format!("_{kind}{}", self.next);
            // A snapshot may say that it stands anywhere; no name is given twice while one is taken.
            self.next = self.next.wrapping_add(1);
            if !taken(&name) {
                return name;
            }
        }
    }

    /// Where a device was when it was last plugged in.
    pub(super) fn place(&self, id: &str) -> Option<(u16, u8)> {
        self.places.get(id).copied()
    }

    /// Remembers where a device is.
    pub(super) fn note(&mut self, id: &str, place: (u16, u8)) {
        self.places.insert(id.to_owned(), place);
    }

    /// The number of the next automatic name, for a machine that is saved.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Names of a machine that is restored; places come with its devices.
    pub(super) fn restored(next: u64) -> Self {
        Names { next, places: BTreeMap::new() }
    }

    /// A device is not part of the machine any more; its slot may go to another.
    pub fn forget(&mut self, id: &str) {
        self.places.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn automatic_names_share_a_counter_and_are_never_given_twice() {
        let mut names = Names::default();
        let taken = |name: &str| name == "_net1";
        assert_eq!(names.make("disk", taken), "_disk0");
        assert_eq!(names.make("net", taken), "_net2");
        names.note("_disk0", (0, 3));
        assert_eq!(names.place("_disk0"), Some((0, 3)));
        names.forget("_disk0");
        assert_eq!(names.place("_disk0"), None);
        assert_eq!(names.make("disk", taken), "_disk3");
    }
}
