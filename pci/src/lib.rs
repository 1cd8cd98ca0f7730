//! PCI as the guest sees it: one bus per segment, functions with configuration space, BARs and MSI-X.
//!
//! This crate knows no hypervisor and no particular device: a function wraps a [`device::Device`], and whatever concerns the
//! machine's address maps leaves as a [`device::Effect`].
