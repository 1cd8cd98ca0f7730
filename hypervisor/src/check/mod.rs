//! Says whether this host can run guests.

#[cfg(test)]
mod machine;

#[cfg(test)]
pub(crate) use machine::*;
