//! The configuration: command line, environment and file, parsed exactly as in etcd 3.7.3,
//! validated once, and passed on as one [`Config`] that needs no further checks.
//!
//! `flags` is the table of all flags; `parse`, `env` and `file` read `values` for it, `validate`
//! checks them, `settle` builds the [`Config`] of `settings`, and [`load`] runs these in order.
//! `summary` logs a [`Config`]. `commands` parses the subcommands.

mod auth;
mod commands;
mod discovery;
pub mod duration;
mod env;
mod exit;
mod file;
mod flags;
mod gates;
mod go_syntax;
mod help;
mod identity;
mod keepalive;
mod load;
mod log;
mod machine;
mod note;
mod offline;
mod parse;
mod proxies;
mod refusal;
mod rotation;
mod settings;
mod settle;
mod summary;
#[cfg(test)]
mod tests;
mod tls;
mod tracing;
pub mod urls;
mod validate;
mod value;
mod values;

#[cfg(any(test, feature = "fuzzing"))]
pub use auth::SIGN_METHODS;
pub use auth::{AuthToken, INVALID_OPTIONS, JwtOptions, SignMethod, Signature};
pub use commands::{Command, Export, Restore, command};
pub use discovery::{Discovery, DiscoveryService, DnsDiscovery};
pub use exit::Exit;
pub use help::version;
#[cfg(test)]
pub use identity::Founder;
pub use identity::{Bootstrap, InitialCluster, Resolve, member_id, same_peer_urls};
pub use load::{Loaded, load, os_reason};
pub use log::{Level, LogConfig, LogFormat, LogOutput};
pub use machine::{Surroundings, default_host, memory_bytes};
pub use note::Note;
pub use offline::{Format, Offline, Task};
pub use proxies::{ClientRecords, ClusterPlace, GatewayStart, GrpcProxyStart, Proxy, UpstreamTls};
pub use refusal::Refusal;
pub use rotation::Rotation;
pub use settings::{AutoCompaction, ClusterState, Config, Listen, Metrics};
#[cfg(test)]
pub use tls::AVAILABLE_SUITES;
pub use tls::{AllowedNames, ListenerTls, SelfSigned, TlsProtocol, TlsVersion};
pub use tracing::{MILLION, Tracing};
pub use urls::Url;
