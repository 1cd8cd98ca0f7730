//! The grammar of options.
