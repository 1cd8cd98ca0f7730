//! What was measured: rows of series, one series for each program, and their comparison.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind};

use serde_json::{Value, json};

use crate::stats::Summary;

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    Less,
    More,
}

/// One measured quantity.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    /// The program that ratios are taken to.
    pub(crate) yardstick: String,
    /// By program, by round; a round that failed is absent.
    series: BTreeMap<String, BTreeMap<usize, f64>>,
    /// In the order in which they came.
    pub(crate) programs: Vec<String>,
}

/// All rows, and the programs that failed somewhere or had to be left out.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub(crate) rows: Vec<Row>,
    pub(crate) failures: Vec<String>,
    /// What a program cannot do, in its own words.
    pub(crate) skipped: Vec<String>,
}

/// Who has a turn after whom: in the order given, and the next round the other way round. What one does to the page cache and the disk is there
/// when the next one begins.
pub(crate) fn turns<T>(all: &[T], round: usize) -> impl Iterator<Item = &T> {
    let last = all.len().saturating_sub(1);
    (0..all.len()).map(move |n| &all[if round.is_multiple_of(2) { n } else { last - n }])
}

impl Rows {
    /// Notes a measurement of `program` in `round`; the row is made when it is first heard of.
    pub(crate) fn note(
        &mut self,
        (name, unit, better): (&str, &'static str, Better),
        yardstick: &str,
        program: &str,
        round: usize,
        value: f64,
    ) {
        let at = self.rows.iter().position(|r| r.name == name).unwrap_or_else(|| {
            self.rows.push(Row {
                name: name.to_owned(),
                unit,
                better,
                yardstick: yardstick.to_owned(),
                series: BTreeMap::new(),
                programs: Vec::new(),
            });
            self.rows.len() - 1
        });
        let row = &mut self.rows[at];
        if !row.programs.iter().any(|p| p == program) {
            row.programs.push(program.to_owned());
        }
        row.series.entry(program.to_owned()).or_default().insert(round, value);
    }

    /// Notes that a program could not be measured.
    pub(crate) fn fail(&mut self, what: String) {
        eprintln!("bench: {what}");
        if !self.failures.contains(&what) {
            self.failures.push(what);
        }
    }

    /// Notes that a program does not do what a row is about.
    pub(crate) fn skip(&mut self, what: String) {
        eprintln!("bench: skipped: {what}");
        if !self.skipped.contains(&what) {
            self.skipped.push(what);
        }
    }

    /// One or the other: a refusal is no failure of the program.
    pub(crate) fn miss(&mut self, what: &str, error: &Error) {
        let text = format!("{what}: {error}");
        if error.kind() == ErrorKind::Unsupported { self.skip(text) } else { self.fail(text) }
    }

    pub(crate) fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|r| r.name == name)
    }
}

impl Row {
    /// The figures of one program.
    pub(crate) fn summary(&self, program: &str) -> Option<Summary> {
        Summary::of(self.series.get(program)?.values().copied())
    }

    /// Median over the rounds of `program` over `other` in the same round: load that comes and goes hits both.
    pub(crate) fn ratio(&self, program: &str, other: &str) -> Option<f64> {
        let (mine, theirs) = (self.series.get(program)?, self.series.get(other)?);
        let ratios = mine.iter().filter_map(|(round, value)| Some(value / theirs.get(round)?));
        Some(Summary::of(ratios.filter(|r| r.is_finite()))?.median)
    }

    /// As JSON.
    pub(crate) fn json(&self) -> Value {
        let programs: Vec<Value> = self
            .programs
            .iter()
            .filter_map(|program| {
                let s = self.summary(program)?;
                Some(json!({
                    "program": program, "runs": s.runs, "median": s.median, "p10": s.p10, "p90": s.p90,
                    "least": s.least, "most": s.most, "ratio": self.ratio(program, &self.yardstick),
                    "values": self.series[program].values().collect::<Vec<_>>(),
                }))
            })
            .collect();
        let better = if self.better == Better::Less { "less" } else { "more" };
        json!({
            "name": self.name, "unit": self.unit, "better": better, "ratio_to": self.yardstick, "programs": programs,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_begins_is_another_each_round() {
        let order = |round| turns(&["a", "b", "c"], round).copied().collect::<String>();
        assert_eq!([order(0), order(1), order(2)], ["abc", "cba", "abc"]);
        assert_eq!(turns::<u8>(&[], 0).count(), 0);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let mut rows = Rows::default();
        let what = ("start", "ms", Better::Less);
        for (round, load) in [1.0, 10.0, 2.0].into_iter().enumerate() {
            rows.note(what, "bare", "bare", round, load);
            rows.note(what, "bare", "ours", round, load * 1.5);
        }
        rows.note(what, "bare", "ours", 3, 1000.0); // its partner failed
        let row = rows.row("start").unwrap();
        assert_eq!(row.ratio("ours", "bare"), Some(1.5));
        assert_eq!(row.summary("bare").unwrap().median, 2.0);
        assert_eq!(row.ratio("ours", "nobody"), None);
    }
}
