//! The commands `gateway start` and `grpc-proxy start`: etcd's flags for a process that stands before
//! a cluster. As in etcd they are read from the command line alone.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::duration;
use super::go_syntax::parse_bool;
use super::tls::{AllowedNames, ListenerTls, SelfSigned, TlsProtocol};
use crate::types::VERSION;

/// A process before a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxy {
    Gateway(GatewayStart),
    Grpc(Box<GrpcProxyStart>),
}

/// Pass connections on, whatever is in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayStart {
    pub listen_addr: String,
    pub cluster: ClusterPlace,
    /// Between two tries to reach a member that could not be reached.
    pub retry_delay: Duration,
}

/// Pass calls on, those that ask for the same as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcProxyStart {
    pub listen_addr: String,
    /// A URL, for HTTP alone.
    pub metrics_addr: Option<String>,
    pub cluster: ClusterPlace,
    /// Between two requests for the cluster's members, which replace those above.
    pub endpoints_auto_sync: Option<Duration>,
    /// What clients learn as the only member.
    pub advertise_client_url: String,
    /// Where proxies of the same cluster make themselves known; and for how long, in seconds.
    pub resolver: Option<(String, i64)>,
    /// Before every key; may be empty.
    pub namespace: String,
    pub data_dir: PathBuf,
    /// How members are reached.
    pub upstream: UpstreamTls,
    /// Pings of connections to members.
    pub dial_keepalive: Option<(Duration, Duration)>,
    /// Those without calls are pinged as well.
    pub permit_without_stream: bool,
    /// None: nothing is encrypted.
    pub listener: Option<ListenerTls>,
    pub protocol: TlsProtocol,
    pub max_send_bytes: usize,
    pub max_recv_bytes: usize,
    pub max_concurrent_streams: u32,
    pub keepalive_min_time: Duration,
    pub keepalive: Option<(Duration, Duration)>,
    /// Profiles are served.
    pub pprof: bool,
    pub debug: bool,
    /// Every message of a client is logged.
    pub logs_messages: bool,
    /// No read shows an older state than one before.
    pub orders_reads: bool,
}

/// How connections to members are encrypted, where their URLs say that they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    pub pair: Option<(PathBuf, PathBuf)>,
    pub authorities: Option<PathBuf>,
    pub verifies: bool,
    /// Whether a flag asks for TLS: endpoints without a scheme have it then.
    pub wanted: bool,
}

/// Where the members of a cluster are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterPlace {
    /// Where the DNS names none.
    pub endpoints: Vec<String>,
    pub srv: Option<ClientRecords>,
}

/// The records of a cluster's clients in the DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRecords {
    pub domain: String,
    /// A suffix of the service's name.
    pub service: String,
    /// Those whose certificate does not name the domain are taken as well.
    pub insecure: bool,
    pub authorities: Option<PathBuf>,
}

fn text(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    let arg = Arg::new(name).long(name).value_name("TEXT").help(help);
    match default {
        "" => arg,
        default => arg.default_value(default),
    }
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    let parse = |text: &str| parse_bool(text).ok_or("parse error");
    Arg::new(name)
        .long(name)
        .value_name("BOOL")
        .num_args(0..=1)
        .require_equals(true)
        .default_value("false")
        .default_missing_value("true")
        .hide_default_value(true)
        .value_parser(parse)
        .help(help)
}

fn list(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    text(name, default, help)
        .value_name("LIST")
        .value_delimiter(',')
        .action(ArgAction::Append)
}

fn duration(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    let parse = |text: &str| {
        let ns = duration::parse_ns(text)?;
        let ns = u64::try_from(ns).map_err(|_| "it is below zero".to_owned())?;
        Ok::<_, String>(Duration::from_nanos(ns))
    };
    text(name, default, help)
        .value_name("DURATION")
        .value_parser(parse)
}

const CLUSTER_FLAGS: [&str; 3] = ["discovery-srv", "discovery-srv-name", "insecure-discovery"];

fn cluster_flags() -> [Arg; 4] {
    let [domain, service, insecure] = CLUSTER_FLAGS;
    [
        list(
            "endpoints",
            "127.0.0.1:2379",
            "Members of the cluster, comma-separated, where no SRV records are asked for",
        ),
        text(
            domain,
            "",
            "Domain whose SRV records name the cluster's members",
        ),
        text(service, "", "Suffix of the name of the SRV records"),
        switch(
            insecure,
            "Take members of SRV records whose certificate does not name the domain",
        ),
    ]
}

impl ClusterPlace {
    fn of(matches: &ArgMatches, authorities: &str) -> Self {
        let [domain, service, insecure] = CLUSTER_FLAGS;
        let srv = texts(matches, domain).map(|domain| ClientRecords {
            domain,
            service: texts(matches, service).unwrap_or_default(),
            insecure: is_on(matches, insecure),
            authorities: texts(matches, authorities).map(Into::into),
        });
        Self {
            endpoints: all(matches, "endpoints"),
            srv,
        }
    }
}

/// A text that is not empty.
fn texts(matches: &ArgMatches, name: &str) -> Option<String> {
    let text = matches.get_one::<String>(name);
    text.filter(|text| !text.is_empty()).cloned()
}

fn all(matches: &ArgMatches, name: &str) -> Vec<String> {
    let texts = matches.get_many::<String>(name).unwrap_or_default();
    texts.filter(|text| !text.is_empty()).cloned().collect()
}

fn is_on(matches: &ArgMatches, name: &str) -> bool {
    matches.get_one::<bool>(name).copied().unwrap_or_default()
}

fn time(matches: &ArgMatches, name: &str) -> Duration {
    let found = matches.get_one::<Duration>(name);
    found.copied().unwrap_or_default()
}

fn number(matches: &ArgMatches, name: &str) -> u64 {
    let found = matches.get_one::<u64>(name);
    found.copied().unwrap_or_default()
}

fn path(matches: &ArgMatches, name: &str) -> Option<PathBuf> {
    texts(matches, name).map(PathBuf::from)
}

fn count(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    text(name, default, help)
        .value_name("NUMBER")
        .value_parser(clap::value_parser!(u64))
}

/// What etcd's proxy has and this one lacks.
const NOT_BUILT: &str = "experimental-leasing-prefix";

fn cluster_side_flags() -> Vec<Arg> {
    vec![
        duration(
            "endpoints-auto-sync-interval",
            "0s",
            "Interval of asking the cluster for its members, which replace the endpoints; 0 for never",
        ),
        text(
            "advertise-client-url",
            "127.0.0.1:23790",
            "Address that clients learn as the cluster's member; empty for the members themselves",
        ),
        text(
            "resolver-prefix",
            "",
            "Prefix of the keys by which proxies of the same cluster know each other",
        ),
        count(
            "resolver-ttl",
            "0",
            "Seconds until a proxy that is gone is forgotten there",
        ),
        text(
            "namespace",
            "",
            "Prefix of every key of the proxy's clients",
        ),
        duration(
            "dial-keepalive-time",
            "0s",
            "Interval of pings to members, of 10s at least; 0 for none",
        ),
        duration(
            "dial-keepalive-timeout",
            "20s",
            "Time until a ping to a member has to be answered",
        ),
        switch(
            "permit-without-stream",
            "Ping members without a call as well, which they have to allow",
        ),
        count(
            "max-send-bytes",
            "1572864",
            "The largest request that has keys, in bytes",
        ),
        count(
            "max-recv-bytes",
            "2147483647",
            "The largest answer that is read here (--namespace), in bytes",
        ),
        text("cert", "", "Certificate that is shown to members"),
        text("key", "", "Its key"),
        text("cacert", "", "Authorities that vouch for members"),
        switch(
            "insecure-skip-tls-verify",
            "Do not verify members' certificates",
        ),
    ]
}

fn client_side_flags() -> Vec<Arg> {
    vec![
        text(
            "metrics-addr",
            "",
            "URL to serve /metrics and /health at as well",
        ),
        text(
            "data-dir",
            "default.proxy",
            "Directory for the certificate of --auto-tls",
        ),
        duration(
            "grpc-keepalive-min-time",
            "5s",
            "Minimum interval of clients' pings",
        ),
        duration(
            "grpc-keepalive-interval",
            "2h",
            "Interval of pings to clients; 0 for none",
        ),
        duration(
            "grpc-keepalive-timeout",
            "20s",
            "Time until a ping to a client has to be answered",
        ),
        count(
            "max-concurrent-streams",
            "4294967295",
            "Calls of a client's connection at once",
        ),
        text("cert-file", "", "Certificate that is shown to clients"),
        text("key-file", "", "Its key"),
        text(
            TRUSTED_CA_FILE,
            "",
            "Authorities that vouch for clients, which need a certificate then",
        ),
        text(
            "client-crl-file",
            "",
            "Certificates of clients that are not accepted any more",
        ),
        list(
            "listen-cipher-suites",
            "",
            "Cipher suites for clients, comma-separated",
        ),
        text(
            "tls-min-version",
            "TLS1.2",
            "The least version of TLS for clients",
        ),
        text(
            "tls-max-version",
            "",
            "The highest version of TLS for clients",
        ),
        switch(
            "auto-tls",
            "Serve clients by TLS with a certificate that is made",
        ),
        count("self-signed-cert-validity", "1", "Years that it is valid"),
        switch(
            "enable-pprof",
            "Profiles under /debug/pprof/ for `go tool pprof`",
        ),
        switch("debug", "Log more"),
        switch(
            "experimental-enable-grpc-logging",
            "Log every request and answer, without passwords and tokens",
        ),
        switch(
            "experimental-serializable-ordering",
            "Let no read show an older state than one before it; compressed calls are not ordered",
        ),
    ]
}

impl GrpcProxyStart {
    fn of(start: &ArgMatches) -> Result<Self, String> {
        if texts(start, NOT_BUILT).is_some() {
            return Err(format!(
                "--{NOT_BUILT} is not built yet in etched {VERSION}"
            ));
        }
        let (prefix, ttl) = (
            texts(start, "resolver-prefix"),
            number(start, "resolver-ttl"),
        );
        let resolver = match (prefix, i64::try_from(ttl)) {
            (None, Ok(0)) => None,
            (Some(prefix), Ok(1..)) => Some((prefix, ttl as i64)),
            (Some(_), _) => return Err(format!("invalid resolver-ttl {ttl}")),
            (None, _) => return Err("invalid resolver-prefix \"\"".to_owned()),
        };
        let advertise_client_url = texts(start, "advertise-client-url").unwrap_or_default();
        if resolver.is_some() && advertise_client_url.is_empty() {
            return Err("invalid advertise-client-url \"\"".to_owned());
        }
        let keepalive = |interval: &str, timeout: &str| {
            let (interval, timeout) = (time(start, interval), time(start, timeout));
            (!interval.is_zero()).then_some((interval, timeout))
        };
        let size = |name: &str| usize::try_from(number(start, name)).unwrap_or(usize::MAX);
        let listen_addr = texts(start, LISTEN_ADDR).unwrap_or_default();
        let data_dir = path(start, "data-dir").unwrap_or_default();
        Ok(Self {
            listener: listener(start, &listen_addr, &data_dir)?,
            protocol: protocol(start)?,
            listen_addr,
            metrics_addr: texts(start, "metrics-addr"),
            cluster: ClusterPlace::of(start, "cacert"),
            endpoints_auto_sync: Some(time(start, "endpoints-auto-sync-interval"))
                .filter(|interval| !interval.is_zero()),
            advertise_client_url,
            resolver,
            namespace: texts(start, "namespace").unwrap_or_default(),
            data_dir,
            upstream: upstream(start)?,
            dial_keepalive: keepalive("dial-keepalive-time", "dial-keepalive-timeout"),
            permit_without_stream: is_on(start, "permit-without-stream"),
            max_send_bytes: size("max-send-bytes"),
            max_recv_bytes: size("max-recv-bytes"),
            max_concurrent_streams: number(start, "max-concurrent-streams")
                .try_into()
                .unwrap_or(u32::MAX),
            keepalive_min_time: time(start, "grpc-keepalive-min-time"),
            keepalive: keepalive("grpc-keepalive-interval", "grpc-keepalive-timeout"),
            pprof: is_on(start, "enable-pprof"),
            debug: is_on(start, "debug"),
            logs_messages: is_on(start, "experimental-enable-grpc-logging"),
            orders_reads: is_on(start, "experimental-serializable-ordering"),
        })
    }
}

fn upstream(start: &ArgMatches) -> Result<UpstreamTls, String> {
    let (pair, authorities) = (pair(start, "cert", "key")?, path(start, "cacert"));
    let skips = is_on(start, "insecure-skip-tls-verify");
    Ok(UpstreamTls {
        wanted: pair.is_some() || authorities.is_some() || skips,
        pair,
        authorities,
        verifies: !skips,
    })
}

/// Both files or neither.
fn pair(
    start: &ArgMatches,
    certificate: &str,
    key: &str,
) -> Result<Option<(PathBuf, PathBuf)>, String> {
    match (path(start, certificate), path(start, key)) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        _ => Err(format!(
            "--{certificate} and --{key} must both be present, or both absent"
        )),
    }
}

fn listener(
    start: &ArgMatches,
    listen_addr: &str,
    data_dir: &std::path::Path,
) -> Result<Option<ListenerTls>, String> {
    let given = pair(start, "cert-file", "key-file")?;
    let authorities = path(start, TRUSTED_CA_FILE);
    if given.is_none() && authorities.is_some() {
        return Err("--trusted-ca-file needs --cert-file and --key-file".to_owned());
    }
    let years = number(start, "self-signed-cert-validity");
    let auto = is_on(start, "auto-tls");
    if auto && years == 0 {
        return Err("selfSignedCertValidity is invalid,it should be greater than 0".to_owned());
    }
    let made = (given.is_none() && auto).then(|| {
        let host = listen_addr
            .rsplit_once(':')
            .map_or(listen_addr, |(host, _)| host);
        SelfSigned {
            directory: data_dir.join("fixtures/proxy"),
            hosts: vec![host.trim_matches(['[', ']']).to_owned()],
            years,
        }
    });
    let files = given.or_else(|| {
        let directory = &made.as_ref()?.directory;
        Some((directory.join("cert.pem"), directory.join("key.pem")))
    });
    Ok(files.map(|(certificate, key)| ListenerTls {
        certificate,
        key,
        made,
        authenticates: false,
        authorities,
        revoked: path(start, "client-crl-file"),
        allowed: AllowedNames::default(),
        checks_source: false,
    }))
}

fn protocol(start: &ArgMatches) -> Result<TlsProtocol, String> {
    let cipher_suites = all(start, "listen-cipher-suites");
    let [least, most] =
        ["tls-min-version", "tls-max-version"].map(|name| texts(start, name).unwrap_or_default());
    let protocol = super::tls::protocol_of(&least, &most, &cipher_suites);
    protocol.map_err(|refusal| refusal.to_string())
}

const LISTEN_ADDR: &str = "listen-addr";
const TRUSTED_CA_FILE: &str = "trusted-ca-file";
const RETRY_DELAY: &str = "retry-delay";

/// Adds the commands to the program's.
pub fn add(program: Command) -> Command {
    let listen_addr = || text(LISTEN_ADDR, "127.0.0.1:23790", "Address to listen on");
    let start = |about: &'static str| {
        let start = Command::new("start").about(about).arg(listen_addr());
        // As in etcd, the last one counts.
        start.args_override_self(true)
    };
    let gateway = start("Start the gateway").args(cluster_flags()).args([
        text(
            TRUSTED_CA_FILE,
            "",
            "Authorities that vouch for members of SRV records",
        ),
        duration(
            RETRY_DELAY,
            "1m",
            "Time until a member that could not be reached is tried again",
        ),
    ]);
    let of = |name: &'static str, about: &'static str, start: Command| {
        Command::new(name)
            .about(about)
            .subcommand_required(true)
            .subcommand(start)
    };
    let proxy = start("Start the proxy")
        .args(cluster_flags())
        .args(cluster_side_flags())
        .args(client_side_flags())
        .arg(text(NOT_BUILT, "", "Not built yet"));
    program
        .subcommand(of(
            "gateway",
            "Pass connections of clients on to a cluster's members",
            gateway,
        ))
        .subcommand(of(
            "grpc-proxy",
            "Pass calls of clients on to a cluster's members, those for the same as one",
            proxy,
        ))
}

impl Proxy {
    /// The command of this name; none if it is another's.
    ///
    /// # Errors
    /// What is wrong with its flags.
    pub fn of(name: &str, matches: &ArgMatches) -> Option<Result<Self, String>> {
        let (_, start) = matches.subcommand()?;
        match name {
            "grpc-proxy" => {
                let started = GrpcProxyStart::of(start);
                Some(started.map(|start| Self::Grpc(Box::new(start))))
            }
            "gateway" => Some(Ok(Self::Gateway(GatewayStart {
                listen_addr: texts(start, LISTEN_ADDR).unwrap_or_default(),
                cluster: ClusterPlace::of(start, TRUSTED_CA_FILE),
                retry_delay: time(start, RETRY_DELAY),
            }))),
            _ => None,
        }
    }
}
