//! Taps: opening, configuring, offloads.
