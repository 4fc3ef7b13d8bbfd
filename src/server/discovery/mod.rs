//! How the founders of a cluster find each other where no flag lists them: `srv` asks the DNS,
//! `service` a discovery service.

pub mod service;
pub mod srv;
