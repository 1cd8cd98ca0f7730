//! The metadata service: a guest reads a JSON document at [`ADDRESS`] or [`ADDRESS6`] over its ordinary network card, as it would in a cloud.
//!
//! ```text
//!   control thread ── replaces, patches ──► Store ◄── reads ── Endpoint, one a card: neighbours, TCP (smoltcp), HTTP
//!                                                                 ▲  │
//!             a card's frames for the service, by `is_for_service` ┘  └► frames for the guest
//! ```
//!
//! A card hands over the frames that [`is_for_service`] picks, and takes what [`Endpoint::next_frame`] gives. There is no route from here to
//! anything else: what is asked is answered from the document or refused, and the service opens no file and no socket.
//!
//! The guest is hostile: everything here is bounded by the constants of [`endpoint`], [`http`], [`document`] and [`token`].

pub mod document;
pub mod endpoint;
mod frame;
pub mod http;
mod random;
mod settings;
mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod token;
mod wire;

pub use document::{Document, DocumentError, Patch};
pub use endpoint::{Endpoint, Pace};
pub use frame::{ADDRESS, ADDRESS6, Head, MAC, is_for_service};
pub use settings::MetadataSpec;
pub use store::{KEPT, Store, TokenUse};
