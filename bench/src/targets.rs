//! What was aimed at, and whether it was reached.

use serde_json::{Value, json};

use crate::block::OWN;
use crate::boot::USERSPACE;
use crate::grid;
use crate::layers;
use crate::restore;
use crate::rows::Rows;
use crate::start::{FIRST_BYTE, PER_SECOND, PRIVATE_DIRTY, PROPORTIONAL};

/// Names of the programs that targets speak of.
pub(crate) const OURS: &str = "virga";
pub(crate) const BARE: &str = "bare KVM";
pub(crate) const QEMU: &str = "QEMU";

/// One aim and what came of it.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) what: String,
    pub(crate) aim: String,
    pub(crate) reached: String,
    pub(crate) met: bool,
}

impl Verdict {
    pub(crate) fn json(&self) -> Value {
        json!({"what": self.what, "target": self.aim, "reached": self.reached, "met": self.met})
    }
}

enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Limit {
    fn met(&self, value: f64) -> bool {
        match self {
            Limit::AtMost(limit) => value <= *limit,
            Limit::AtLeast(limit) => value >= *limit,
        }
    }

    fn text(&self, unit: &str) -> String {
        match self {
            Limit::AtMost(limit) => format!("at most {limit}{unit}"),
            Limit::AtLeast(limit) => format!("at least {limit}{unit}"),
        }
    }
}

/// Judges what was measured; `others` are programs named on the command line, Cloud Hypervisor among them if its name says so.
pub(crate) fn verdicts(rows: &Rows, others: &[String]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let mut ratio = |row: &str, to: &str, limit: Limit| {
        if let Some(value) = rows.row(row).and_then(|r| r.ratio(OURS, to)) {
            verdicts.push(Verdict {
                what: row.to_owned(),
                aim: limit.text(&format!(" x {to}")),
                reached: format!("{value:.2} x"),
                met: limit.met(value),
            });
        }
    };
    ratio(FIRST_BYTE, BARE, Limit::AtMost(1.5));
    for size in ["1 GiB", "8 GiB"] {
        ratio(&restore::row(size, restore::MAPPED), BARE, Limit::AtMost(2.0));
    }
    for write in [false, true] {
        for direct in [false, true] {
            ratio(&grid::row(OWN, write, 32, direct), QEMU, Limit::AtLeast(1.0));
        }
    }
    for other in others.iter().filter(|o| o.contains("cloud-hypervisor")) {
        ratio(FIRST_BYTE, other, Limit::AtMost(0.5));
        ratio(&grid::row(OWN, false, 32, false), other, Limit::AtLeast(1.3));
        ratio(USERSPACE, other, Limit::AtMost(0.9));
    }
    let mut absolute = |row: &str, program: &str, limit: Limit| {
        let row = rows.row(row);
        if let Some((row, s)) = row.and_then(|r| Some((r, r.summary(program)?))) {
            verdicts.push(Verdict {
                what: row.name.clone(),
                aim: limit.text(&format!(" {}", row.unit)),
                reached: format!("{:.0} {}", s.median, row.unit),
                met: limit.met(s.median),
            });
        }
    };
    for (row, most) in [(PROPORTIONAL, 2600.0), (PRIVATE_DIRTY, 400.0)] {
        absolute(row, OURS, Limit::AtMost(most));
        absolute(&format!("{}{row}", layers::PREFIX), layers::ALL, Limit::AtMost(most));
    }
    absolute(PER_SECOND, OURS, Limit::AtLeast(150.0));
    absolute(&restore::failures(restore::MAPPED), OURS, Limit::AtMost(0.0));
    verdicts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Better;

    #[test]
    fn targets_are_judged_by_what_was_measured_and_no_other() {
        let mut rows = Rows::default();
        rows.note((FIRST_BYTE, "ms", Better::Less), BARE, BARE, 0, 2.0);
        rows.note((FIRST_BYTE, "ms", Better::Less), BARE, OURS, 0, 3.2);
        rows.note((PRIVATE_DIRTY, "kB", Better::Less), BARE, OURS, 0, 350.0);
        let got: Vec<_> = verdicts(&rows, &[]).into_iter().map(|v| (v.what, v.reached, v.met)).collect();
        let (start, dirty) = (FIRST_BYTE.to_owned(), PRIVATE_DIRTY.to_owned());
        assert_eq!(got, [(start, "1.60 x".to_owned(), false), (dirty, "350 kB".to_owned(), true)]);
    }
}
