//! What a device contributes to the firmware's tables.

/// One contribution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableEntry {
    /// AML bytes placed under `\_SB_` in the DSDT.
    SystemBus(Vec<u8>),
    /// AML bytes placed at the root of the DSDT.
    Root(Vec<u8>),
    /// A MADT structure (ACPI 6.5 §5.2.12).
    Madt(Vec<u8>),
    /// The FADT's reset register: this value written to this port resets.
    ResetPort {
        /// The port.
        port: u16,
        /// The value.
        value: u8,
    },
    /// The FADT's sleep control and status registers.
    SleepPort(u16),
    /// The FADT's power management timer, 32 bits wide.
    PmTimerPort(u16),
}

/// Collects contributions.
pub trait TableSink {
    /// Takes one.
    fn add(&mut self, entry: TableEntry);

    /// AML under `\_SB_`.
    fn system_bus(&mut self, aml: &dyn acpi_tables::Aml) {
        let mut bytes = Vec::new();
        aml.to_aml_bytes(&mut bytes);
        self.add(TableEntry::SystemBus(bytes));
    }

    /// AML at the root.
    fn root(&mut self, aml: &dyn acpi_tables::Aml) {
        let mut bytes = Vec::new();
        aml.to_aml_bytes(&mut bytes);
        self.add(TableEntry::Root(bytes));
    }
}
