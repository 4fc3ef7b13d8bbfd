//! Every flag of etcd 3.7.3, and etched's own, in one table: name, type, default, place in the
//! configuration file, whether it has an effect, and its help text. Parsing, environment, file,
//! refusals and help all read this table, so a flag is added by a line.

use super::value::Kind;

/// The key of a flag in the configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The flag's own name.
    Name,
    /// Nested, with dots.
    Path(&'static str),
    /// None.
    None,
}

/// What etched does with a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagSupport {
    Built,
    /// Accepted without effect, and logged if it is set: etched has nothing that it could control.
    /// The text says why.
    NoEffect(&'static str),
}

/// One flag.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    pub name: &'static str,
    pub kind: Kind,
    /// As written on the command line.
    pub default: &'static str,
    pub key: Key,
    pub state: FlagSupport,
    pub usage: &'static str,
    /// Whether etcd has no such flag.
    pub is_own: bool,
}

const fn flag(name: &'static str, kind: Kind, default: &'static str, usage: &'static str) -> Flag {
    Flag {
        name,
        kind,
        default,
        key: Key::Name,
        state: FlagSupport::Built,
        usage,
        is_own: false,
    }
}

const fn forgotten(name: &'static str) -> Flag {
    flag(name, Kind::Ignored, "", "").no_key()
}

impl Flag {
    const fn no_effect(mut self, why: &'static str) -> Flag {
        self.state = FlagSupport::NoEffect(why);
        self
    }

    const fn at(mut self, path: &'static str) -> Flag {
        self.key = Key::Path(path);
        self
    }

    const fn own(mut self) -> Flag {
        self.is_own = true;
        self
    }

    const fn no_key(mut self) -> Flag {
        self.key = Key::None;
        self
    }
}

/// The flags under one heading of the help text.
pub struct Section {
    pub title: &'static str,
    pub flags: &'static [Flag],
}

/// Every flag, in the order of the help text.
pub fn all() -> impl Iterator<Item = &'static Flag> {
    SECTIONS.iter().flat_map(|section| section.flags)
}

pub fn find(name: &str) -> Option<&'static Flag> {
    all().find(|flag| flag.name == name)
}

const NO_BBOLT: &str = "etched keeps its data in RocksDB, not in bbolt";
const NO_PEERS: &str = "etched detects silent peers itself";
const NO_LOOP: &str = "etched makes no client connections to itself";
const STATES: &[&str] = &["new", "existing"];
const FALLBACKS: &[&str] = &["exit", "proxy"];
const V2_STAGES: &[&str] = &[
    "write-only",
    "write-only-skip-check",
    "write-only-drop-data",
    "gone",
];
const LOG_ROTATION: &str =
    r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#;

use Kind::{
    AnyOf, Bool, Duration, Gates, Hosts, Int, Int64, List, OneOf, Origins, Set, Text, Uint, Uint32,
    Uint64, Urls,
};

#[rustfmt::skip] // One flag a line, or the table cannot be read as one.
pub static SECTIONS: &[Section] = &[
    Section { title: "Member", flags: &[
        flag("name", Text, "default", "This member's name, for people."),
        flag("data-dir", Text, "", "Directory of the data; empty: NAME.etcd."),
        flag("wal-dir", Text, "", "Directory of the raft log, if it is to have its own."),
        flag("snapshot-count", Uint64, "10000", "Applied entries after which the raft log is cut; 0: the default."),
        flag("snapshot-catchup-entries", Uint64, "5000", "Entries that the raft log keeps for slow followers."),
        flag("max-wals", Uint, "5", "Raft log files of 64 MB that stay when they are not needed any more, for `etched log`; 0: all. None unless it is given."),
        flag("max-snapshots", Uint, "5", "Deprecated: snapshot files to keep.").no_effect("etched keeps one state and writes no snapshot files"),
        flag("heartbeat-interval", Uint, "100", "Milliseconds between a leader's heartbeats."),
        flag("election-timeout", Uint, "1000", "Milliseconds without a leader before an election."),
        flag("initial-election-tick-advance", Bool, "true", "Hold the first election sooner, once a quorum is connected."),
        flag("listen-peer-urls", Urls, "http://localhost:2380", "Where to listen for other members."),
        flag("listen-client-urls", Urls, "http://localhost:2379", "Where to listen for clients: gRPC, and HTTP unless it has its own."),
        flag("listen-client-http-urls", Urls, "", "Where to listen for HTTP alone; takes HTTP off the client URLs."),
        flag("quota-backend-bytes", Int64, "0", "Size at which the keyspace is full; 0: 2 GiB, negative: never."),
        flag("max-txn-ops", Uint, "128", "Operations that one transaction may have."),
        flag("max-request-bytes", Uint, "1572864", "Bytes that one request may have."),
        flag("max-concurrent-streams", Uint32, "4294967295", "Streams that one client connection may have open."),
        flag("grpc-keepalive-min-time", Duration, "5s", "Shortest time between a client's pings."),
        flag("grpc-keepalive-interval", Duration, "2h", "Time between pings to an idle client; 0: none."),
        flag("grpc-keepalive-timeout", Duration, "20s", "Wait for a ping's answer before the connection is closed; 0: no pings."),
        flag("socket-reuse-port", Bool, "false", "Set SO_REUSEPORT on the listeners.").at("socket-options.reuse-port"),
        flag("socket-reuse-address", Bool, "false", "Set SO_REUSEADDR on the listeners.").at("socket-options.reuse-address").no_effect("every listener sets SO_REUSEADDR, as in Go"),
        flag("enable-grpc-gateway", Bool, "true", "JSON over HTTP under /v3/, as etcd serves it."),
        flag("feature-gates", Gates, "", "Features to switch, as Name=true,Name=false:"),
        flag("raft-read-timeout", Duration, "5s", "Deadline for reading from a peer.").no_key().no_effect(NO_PEERS),
        flag("raft-write-timeout", Duration, "5s", "Deadline for writing to a peer.").no_key().no_effect(NO_PEERS),
        flag("backend-bbolt-freelist-type", Text, "", "Free list of bbolt.").no_effect(NO_BBOLT),
        flag("backend-batch-interval", Duration, "0s", "Longest time before bbolt commits.").no_effect(NO_BBOLT),
        flag("backend-batch-limit", Int, "0", "Most operations before bbolt commits.").no_effect(NO_BBOLT),
        flag("bootstrap-defrag-threshold-megabytes", Uint, "0", "Defragment bbolt at the start.").no_effect(NO_BBOLT),
        flag("memory-mlock", Bool, "false", "Keep what the process has touched of its memory out of swap."),
    ]},
    Section { title: "Clustering", flags: &[
        flag("initial-advertise-peer-urls", Urls, "http://localhost:2380", "Where other members reach this one."),
        flag("initial-cluster", Text, "default=http://localhost:2380", "The members of a new cluster, as NAME=URL,NAME=URL."),
        flag("initial-cluster-state", OneOf(STATES), "new", "Whether the cluster is 'new' or 'existing'; only read without data."),
        flag("initial-cluster-token", Text, "etcd-cluster", "Makes the identities of this cluster its own."),
        flag("advertise-client-urls", Urls, "http://localhost:2379", "Where clients reach this member."),
        flag("strict-reconfig-check", Bool, "true", "Refuse membership changes that would lose the quorum."),
        flag("max-learners", Int, "1", "Learners that the cluster may have."),
        flag("pre-vote", Bool, "true", "Ask before an election, so that a member that was away disturbs nobody."),
        flag("auto-compaction-retention", Text, "0", "History to keep: hours or a duration, or revisions; 0: no automatic compaction."),
        flag("auto-compaction-mode", Text, "periodic", "What the retention counts: 'periodic' or 'revision'."),
        flag("v2-deprecation", AnyOf(V2_STAGES), "", "Deprecated and ignored.").no_effect("there is no v2 store"),
        flag("discovery-endpoints", Set, "", "Discovery service: endpoints.").at("discovery-config.client.endpoints"),
        flag("discovery-token", Text, "", "Discovery service: token.").at("discovery-config.token"),
        flag("discovery-dial-timeout", Duration, "2s", "Discovery service: dial timeout.").at("discovery-config.client.dial-timeout"),
        flag("discovery-request-timeout", Duration, "5s", "Discovery service: request timeout.").at("discovery-config.client.request-timeout"),
        flag("discovery-keepalive-time", Duration, "2s", "Discovery service: time between pings.").at("discovery-config.client.keepalive-time"),
        flag("discovery-keepalive-timeout", Duration, "6s", "Discovery service: wait for a ping's answer.").at("discovery-config.client.keepalive-timeout"),
        flag("discovery-insecure-transport", Bool, "true", "Discovery service: no TLS.").at("discovery-config.client.secure.insecure-transport"),
        flag("discovery-insecure-skip-tls-verify", Bool, "false", "Discovery service: do not check certificates.").at("discovery-config.client.secure.insecure-skip-tls-verify"),
        flag("discovery-cert", Text, "", "Discovery service: client certificate.").at("discovery-config.client.secure.cert"),
        flag("discovery-key", Text, "", "Discovery service: client key.").at("discovery-config.client.secure.key"),
        flag("discovery-cacert", Text, "", "Discovery service: CA certificates.").at("discovery-config.client.secure.cacert"),
        flag("discovery-user", Text, "", "Discovery service: user.").at("discovery-config.client.auth.username"),
        flag("discovery-password", Text, "", "Discovery service: password.").at("discovery-config.client.auth.password"),
        flag("discovery-srv", Text, "", "DNS domain whose SRV records name the members."),
        flag("discovery-srv-name", Text, "", "Suffix of the SRV records' service name."),
        flag("discovery-fallback", OneOf(FALLBACKS), "exit", "What to do when discovery fails; without the v2 proxy 'exit' alone is left.").no_key(),
    ]},
    Section { title: "Security", flags: &[
        flag("cert-file", Text, "", "Certificate shown to clients.").at("client-transport-security.cert-file"),
        flag("key-file", Text, "", "Its key.").at("client-transport-security.key-file"),
        flag("client-cert-file", Text, "", "Certificate for the member's own client connections.").at("client-transport-security.client-cert-file").no_effect(NO_LOOP),
        flag("client-key-file", Text, "", "Its key.").at("client-transport-security.client-key-file").no_effect(NO_LOOP),
        flag("client-cert-auth", Bool, "false", "Demand certificates of clients.").at("client-transport-security.client-cert-auth"),
        flag("client-crl-file", Text, "", "List of revoked client certificates, in DER or PEM.").at("client-transport-security.crl-file"),
        flag("client-cert-allowed-hostname", List, "", "Host names that a client certificate may have.").at("client-transport-security.allowed-hostname"),
        flag("client-cert-allowed-cn", List, "", "Common names that a client certificate may have; etcd has this in the configuration file alone.").at("client-transport-security.allowed-cn").own(),
        flag("trusted-ca-file", Text, "", "CA of client certificates.").at("client-transport-security.trusted-ca-file"),
        flag("auto-tls", Bool, "false", "Make a certificate to show to clients.").at("client-transport-security.auto-tls"),
        flag("peer-cert-file", Text, "", "Certificate shown to peers.").at("peer-transport-security.cert-file"),
        flag("peer-key-file", Text, "", "Its key.").at("peer-transport-security.key-file"),
        flag("peer-client-cert-file", Text, "", "Certificate for connections to peers.").at("peer-transport-security.client-cert-file"),
        flag("peer-client-key-file", Text, "", "Its key.").at("peer-transport-security.client-key-file"),
        flag("peer-client-cert-auth", Bool, "false", "Demand certificates of peers.").at("peer-transport-security.client-cert-auth"),
        flag("peer-trusted-ca-file", Text, "", "CA of peer certificates.").at("peer-transport-security.trusted-ca-file"),
        flag("peer-cert-allowed-cn", List, "", "Common names that a peer certificate may have.").at("peer-transport-security.allowed-cn"),
        flag("peer-cert-allowed-hostname", List, "", "Host names that a peer certificate may have.").at("peer-transport-security.allowed-hostname"),
        flag("peer-auto-tls", Bool, "false", "Make a certificate to show to peers, and verify none of theirs.").at("peer-transport-security.auto-tls"),
        flag("peer-skip-client-san-verification", Bool, "false", "Do not check the names in peer certificates.").at("peer-transport-security.skip-client-san-verification"),
        flag("peer-crl-file", Text, "", "List of revoked peer certificates, in DER or PEM.").at("peer-transport-security.crl-file"),
        flag("self-signed-cert-validity", Uint, "1", "Years that a certificate of --auto-tls or --peer-auto-tls is valid."),
        flag("cipher-suites", List, "", "TLS cipher suites."),
        flag("tls-min-version", Text, "TLS1.2", "Lowest TLS version."),
        flag("tls-max-version", Text, "", "Highest TLS version."),
        flag("cors", Origins, "*", "Origins that a browser may call from."),
        flag("host-whitelist", Hosts, "*", "Host names that HTTP requests without TLS may carry."),
    ]},
    Section { title: "Auth", flags: &[
        flag("auth-token", Text, "simple", "Kind of authentication token: 'simple', or 'jwt' with options."),
        flag("bcrypt-cost", Uint, "10", "Cost of hashing a password: 4 to 31, each the double of the one before; 22 stands for what is above."),
        flag("auth-token-ttl", Uint, "300", "Seconds that a simple token lives after its last use; 0: the default."),
    ]},
    Section { title: "Profiling and monitoring", flags: &[
        flag("metrics", Text, "basic", "Detail of the metrics: 'basic' or 'extensive'."),
        flag("listen-metrics-urls", Urls, "", "Where else to serve metrics and health."),
        flag("enable-pprof", Bool, "false", "Profiles under /debug/pprof/ for `go tool pprof`, as with --log-level=debug: of the processors' time, and of the heap less what RocksDB allocates."),
    ]},
    Section { title: "Logging", flags: &[
        flag("logger", Text, "zap", "Kind of log; only 'zap', the structured one."),
        flag("log-outputs", Set, "default", "Where the log goes: stderr, stdout, systemd/journal, files; 'default' is stderr."),
        flag("log-level", Text, "info", "Least level that is logged: debug, info, warn, error, panic or fatal."),
        flag("log-format", Text, "json", "Form of the log: 'json', or 'console' for people."),
        flag("enable-log-rotation", Bool, "false", "Put the log file aside when it is full."),
        flag("log-rotation-config-json", Text, LOG_ROTATION, "When it is, in MB; how many days and how many of those files are kept."),
        flag("warning-unary-request-duration", Duration, "300ms", "Requests that take longer are logged; 0: the default."),
        flag("warning-apply-duration", Duration, "100ms", "Entries that take longer to apply are logged."),
    ]},
    Section { title: "Distributed tracing", flags: &[
        flag("enable-distributed-tracing", Bool, "false", "Send traces of calls to an OpenTelemetry collector, by OTLP over gRPC in plain text."),
        flag("distributed-tracing-address", Text, "localhost:4317", "The collector's HOST:PORT."),
        flag("distributed-tracing-service-name", Text, "etcd", "The service's name in traces, the same for all members."),
        flag("distributed-tracing-instance-id", Text, "", "This member's name in traces, its own; empty: none."),
        flag("distributed-tracing-sampling-rate", Int, "0", "Calls per million whose trace begins here; a call in a trace of its client's is in it as the client says."),
    ]},
    Section { title: "Features", flags: &[
        flag("compaction-batch-limit", Int, "0", "Revisions that a compaction removes in one step; 0: 1000."),
        flag("compaction-sleep-interval", Duration, "0s", "Pause between these steps; 0: 10ms; not set: at most the time of the step before."),
        flag("watch-permission-recheck", Bool, "true", "End running watches whose users lost the right to them; etcd lets them run.").own(),
        flag("watch-progress-notify-interval", Duration, "0s", "Time between progress notifications of a quiet watch; 0: 10m."),
        flag("downgrade-check-time", Duration, "5s", "Time between checks for a downgrade.").no_effect("a member of etched never runs the release that a downgrade leads to, so none ends without a request"),
        flag("corrupt-check-time", Duration, "0s", "Time between comparisons of the members' data; 0: none."),
        flag("compact-hash-check-time", Duration, "1m", "Time between comparisons of compaction hashes."),
    ]},
    Section { title: "Unsafe", flags: &[
        flag("unsafe-no-fsync", Bool, "false", "Do not wait for the disk: a crash loses acknowledged writes."),
        flag("force-new-cluster", Bool, "false", "Make this member a cluster of its own."),
    ]},
    Section { title: "etched's own", flags: &[
        flag("memory-budget-bytes", Uint64, "0", "Memory for caches, requests, answers and watches together; 0: a quarter of the machine's, at most 256 MiB.").own(),
    ]},
    Section { title: "Start", flags: &[
        flag("config-file", Text, "", "YAML or JSON file to read instead of other flags and the environment. Durations in it are nanoseconds.").no_key(),
        flag("version", Bool, "false", "Print the version and exit.").no_key(),
    ]},
    Section { title: "", flags: &[
        forgotten("cluster-active-size"), forgotten("cluster-remove-delay"), forgotten("cluster-sync-interval"),
        forgotten("config"), forgotten("force"), forgotten("max-result-buffer"), forgotten("max-retry-attempts"),
        forgotten("peer-heartbeat-interval"), forgotten("peer-election-timeout"), forgotten("retry-interval"),
        forgotten("snapshot"), forgotten("v"), forgotten("vv"), forgotten("test.coverprofile"), forgotten("test.outputdir"),
    ]},
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_and_keys_are_unique() {
        let names: BTreeSet<_> = all().map(|flag| flag.name).collect();
        assert_eq!(names.len(), all().count());
        let keys: Vec<_> = all()
            .filter_map(|flag| match flag.key {
                Key::Name => Some(flag.name),
                Key::Path(path) => Some(path),
                Key::None => None,
            })
            .collect();
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len());
    }

    #[test]
    fn defaults_have_their_flag_s_type() {
        for flag in all() {
            let mut value = flag.kind.default_value(flag.default);
            if !flag.default.is_empty() {
                assert_eq!(
                    flag.kind.set(&mut value, flag.default),
                    Ok(()),
                    "{}",
                    flag.name
                );
            }
            assert_eq!(
                value,
                flag.kind.default_value(flag.default),
                "{}",
                flag.name
            );
        }
    }
}
