//! KVM (and later MSHV) behind one small contract.
