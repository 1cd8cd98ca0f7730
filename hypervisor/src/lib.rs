//! KVM (and later MSHV) behind one small contract.

pub mod x86_64;
