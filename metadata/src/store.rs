//! The document of a machine, for whoever changes it and whoever reads it.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::{Document, DocumentError, Patch};

spec::choice! {
    /// Whether a request needs a token.
    pub enum TokenUse {
        /// It is answered with or without one; a wrong one is refused.
        #[default]
        Optional = "optional",
        /// None is answered without.
        Required = "required",
    }
}

/// The name under which a machine's devices find its [`Store`].
pub const KEPT: &str = "__metadata";

/// See the module. Readers never wait for whoever changes the document, and see it before or after a change.
#[derive(Debug)]
pub struct Store {
    document: ArcSwap<Document>,
    tokens: TokenUse,
}

impl Store {
    /// A store of this document.
    pub fn new(document: Document, tokens: TokenUse) -> Self {
        Store { document: ArcSwap::from_pointee(document), tokens }
    }

    /// Whether requests need a token.
    pub fn tokens(&self) -> TokenUse {
        self.tokens
    }

    /// The document as it is now.
    pub fn document(&self) -> Arc<Document> {
        self.document.load_full()
    }

    /// Puts another document in the place of this.
    pub fn replace(&self, document: Document) {
        self.document.store(Arc::new(document));
    }

    /// Changes the document. Only one thread does so.
    ///
    /// # Errors
    /// It would be too large, and stays as it was.
    pub fn patch(&self, patch: &Patch) -> Result<(), DocumentError> {
        self.replace(self.document().patched(patch)?);
        Ok(())
    }
}
