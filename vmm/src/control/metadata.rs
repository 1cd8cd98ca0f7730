//! What the guest finds about itself: read with the machine's description, kept with it over reboots, and changed by the API. It is no
//! part of a snapshot, since it may hold secrets: a restored machine's is read anew.

use std::convert::Infallible;
use std::sync::Arc;

use ::metadata::{Document, KEPT, Patch, Store};
use api::Reply;
use catalog::VmSpec;
use device::Kept;
use spec::{Kind, Refusal};

use super::{Control, no_vm};

/// Puts the document where network cards find it.
pub(super) fn keep(store: Option<&Arc<Store>>, kept: &Kept) {
    if let Some(store) = store {
        // There is nothing to open.
        let Ok(_) = kept.keep(KEPT, || Ok::<_, Infallible>(store.clone()));
    }
}

impl Control {
    /// Reads the document that the machine is to have.
    pub(super) fn open_metadata(&mut self, spec: &VmSpec) -> Result<(), Refusal> {
        self.metadata = spec.metadata.as_ref().map(|spec| spec.open().map(Arc::new)).transpose()?;
        Ok(())
    }

    fn store(&self) -> Result<&Store, Refusal> {
        let missing = || match self.spec {
            Some(_) => Refusal::new(Kind::State, "The VM was described without metadata (--metadata)"),
            None => no_vm(),
        };
        self.metadata.as_deref().ok_or_else(missing)
    }

    pub(super) fn metadata(&self) -> Result<Reply, Refusal> {
        Ok(Reply::Json(self.store()?.document().to_json()))
    }

    pub(super) fn set_metadata(&self, document: Document) -> Result<(), Refusal> {
        self.store()?.replace(document);
        Ok(())
    }

    pub(super) fn patch_metadata(&self, patch: &Patch) -> Result<(), Refusal> {
        let refused = |e| Refusal::invalid("The metadata document stays as it was").because(e);
        self.store()?.patch(patch).map_err(refused)
    }
}
