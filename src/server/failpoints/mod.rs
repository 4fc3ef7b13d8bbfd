//! What failpoints do, and the HTTP by which tests say so: that of gofail, which etcd's own tests
//! speak. In no release.
//!
//! As gofail reads them from the environment: `GOFAIL_FAILPOINTS` has terms from the start on,
//! `GOFAIL_HTTP` an address to listen on, for everybody who reaches it. Each is refused as a whole
//! where it cannot be used, so that no test takes a place for set that is not.
//!
//! `terms` reads terms, `registry` has those of each failpoint, `page` answers requests, `answering`
//! knows of those in progress, `listen` serves them and carries out what a thread that comes to a place
//! has to do.

mod answering;
#[cfg(feature = "failpoints")]
mod listen;
mod page;
mod registry;
mod terms;

#[cfg(feature = "failpoints")]
pub use listen::start;
