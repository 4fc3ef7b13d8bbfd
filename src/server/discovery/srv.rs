//! SRV records.
use crate::config::{Config, DnsDiscovery, InitialCluster};
use crate::server::Error;

pub async fn cluster(_config: &Config, _dns: &DnsDiscovery) -> Result<InitialCluster, Error> {
    Err(Error::Refused("later".to_owned()))
}
