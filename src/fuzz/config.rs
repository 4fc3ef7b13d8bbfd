//! The configuration: command lines, environments and files, and the values in them.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use crate::config::{
    self, AutoCompaction, Config, Exit, InitialCluster, Loaded, Surroundings, Url, duration,
};

use super::Seed;
use super::memory;

/// What reading may hold: the table of flags and the help text, and a few copies of each value.
const BYTES_FIXED: usize = 1 << 20;
const BYTES_PER_BYTE: usize = 1 << 10;

/// An input is three texts with a zero byte between them: the words of the command line and the
/// variables of the environment, one a line, then the file, if there is one.
fn read(bytes: &[u8]) -> Result<Loaded, Box<Exit>> {
    let mut parts = bytes.splitn(3, |byte| *byte == 0);
    let mut lines = || {
        let part = parts.next().unwrap_or_default();
        let lines = part.split(|byte| *byte == b'\n');
        let lines = lines.filter(|line| !line.is_empty());
        lines.map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    let program = OsString::from("etched");
    let args = std::iter::once(program)
        .chain(lines().into_iter().map(OsString::from_vec))
        .collect::<Vec<_>>();
    let env = lines().into_iter().filter_map(|line| {
        let at = line.iter().position(|byte| *byte == b'=')?;
        let name = OsString::from_vec(line[..at].to_vec());
        Some((name, OsString::from_vec(line[at + 1..].to_vec())))
    });
    let env = env.collect();
    let file = parts
        .next()
        .map(|file| String::from_utf8_lossy(file).into_owned());
    let read_file = |_: &Path| file.clone().ok_or_else(|| io::ErrorKind::NotFound.into());
    let around = Surroundings {
        env,
        read_file: &read_file,
        default_host: &|| Some("10.1.2.3".to_owned()),
        memory_bytes: &|| Some(64 << 30),
    };
    config::load(args, &around)
}

/// Loads a configuration; one that is accepted is what its own rules say, and the same again.
pub fn load(bytes: &[u8]) {
    let limit_bytes = BYTES_FIXED + BYTES_PER_BYTE * bytes.len();
    let loaded = memory::within(limit_bytes, || read(bytes));
    let again = read(bytes);
    match (loaded, again) {
        (Ok(loaded), Ok(again)) => {
            assert_eq!(format!("{loaded:?}"), format!("{again:?}"));
            check(&loaded.config);
        }
        (Err(exit), Err(again)) => {
            assert_eq!(exit, again);
            assert!(exit.code <= 2);
            let says = !exit.stderr.is_empty() || !exit.stdout.is_empty();
            assert!(says || !exit.notes.is_empty(), "refused without a reason");
        }
        (loaded, _) => panic!("{loaded:?} the first time only"),
    }
}

/// What the rest of the program relies on.
fn check(config: &Config) {
    assert!(!config.data_dir.as_os_str().is_empty());
    assert!((1..=10_000).contains(&config.heartbeat_interval_ms));
    assert!(config.election_timeout_ms >= 5 * config.heartbeat_interval_ms);
    assert!(config.election_timeout_ms <= 50_000);
    assert!(config.election_ticks() >= 5);
    assert!(config.snapshot_count >= 1);
    assert!(config.compaction_batch_limit >= 1);
    assert!(config.watch_progress_notify_interval.as_millis() >= 100);
    assert!(!config.listen_client_urls.is_empty());
    match config.auto_compaction {
        AutoCompaction::Off => {}
        AutoCompaction::Periodic(kept) => assert!(!kept.is_zero()),
        AutoCompaction::Revision(kept) => assert!(kept > 0),
    }
    for listen in [&config.listen_peer_urls, &config.listen_client_urls] {
        listen.iter().for_each(|listen| same_again(&listen.url));
    }
    config
        .initial_advertise_peer_urls
        .iter()
        .for_each(same_again);
    config.advertise_client_urls.iter().for_each(same_again);
    assert!(!config.settings().is_empty());
    if let Ok(cluster) = config.listed_cluster() {
        let resolve = |address: &str| Ok(address.to_owned());
        let founded = config.found(&cluster, &resolve);
        assert_eq!(founded, config.found(&cluster, &resolve));
        if let Ok(founded) = founded {
            let ids = founded.founders.iter().map(|founder| founder.id);
            assert!(ids.clone().any(|id| id == founded.member_id));
            assert!(ids.is_sorted());
        }
    }
}

fn same_again(url: &Url) {
    assert_eq!(Url::parse(url.as_str()).as_ref(), Ok(url));
}

/// Single values, by the first byte of the input: each is the same after it was printed and read
/// once more.
pub fn values(bytes: &[u8]) {
    let (kind, text) = bytes.split_first().unwrap_or((&0, &[]));
    let text = String::from_utf8_lossy(text);
    let limit_bytes = BYTES_FIXED + BYTES_PER_BYTE * bytes.len();
    memory::within(limit_bytes, || match kind % 4 {
        0 => {
            if let Ok(ns) = duration::parse_ns(&text) {
                let printed = duration::format_ns(ns);
                assert_eq!(duration::parse_ns(&printed), Ok(ns), "{printed}");
            }
        }
        1 => {
            if let Ok(url) = Url::parse(&text) {
                same_again(&url);
                assert!(!url.as_str().contains('\n'));
            }
        }
        2 => {
            if let Ok(urls) = Url::parse_list(&text) {
                let joined = config::urls::texts(&urls).join(",");
                assert_eq!(Url::parse_list(&joined), Ok(urls), "{joined}");
            }
        }
        _ => {
            if let Ok(cluster) = InitialCluster::parse(&text, "token") {
                let printed = cluster.to_string();
                let again = InitialCluster::parse(&printed, "token");
                assert_eq!(again, Ok(cluster), "{printed}");
            }
        }
    });
}

pub fn load_seeds() -> Vec<Seed> {
    let mut seeds = flag_seeds();
    seeds.extend(file_seeds());
    seeds
}

fn load_seed(name: &str, args: &str, env: &str, file: Option<&str>) -> Seed {
    let mut text = format!("{args}\0{env}");
    if let Some(file) = file {
        text = format!("{text}\0{file}");
    }
    Seed::new(name, text)
}

/// From the command line and the environment.
fn flag_seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut add = |name: &str, args: &str, env: &str| {
        seeds.push(load_seed(name, args, env, None));
    };
    add("nothing", "", "");
    add("help", "--help", "");
    add("version", "--version", "");
    add(
        "usual",
        "--name\none\n--data-dir=/data\n--listen-peer-urls=http://10.0.0.1:2380\n\
         --listen-client-urls=http://10.0.0.1:2379,http://127.0.0.1:2379\n\
         --advertise-client-urls\nhttp://one:2379\n\
         --initial-advertise-peer-urls=http://one:2380\n\
         --initial-cluster=one=http://one:2380,two=http://two:2380\n\
         --initial-cluster-state=new\n--initial-cluster-token=tkn\n",
        "",
    );
    add(
        "limits",
        "--heartbeat-interval=50\n--election-timeout=500\n--quota-backend-bytes=8589934592\n\
         --max-txn-ops=0x80\n--max-request-bytes=1_572_864\n--snapshot-count=5000\n\
         --auto-compaction-mode=revision\n--auto-compaction-retention=1000\n\
         --grpc-keepalive-min-time=5s\n--grpc-keepalive-interval=2h\n\
         --watch-progress-notify-interval=100ms\n--max-learners=2\n--pre-vote=false\n",
        "",
    );
    add(
        "periodic",
        "--auto-compaction-retention=1h30m\n--warning-apply-duration=99.5ms\n\
         --feature-gates=AllAlpha=false,LeaseCheckpoint=true\n--log-level=warn\n\
         --log-outputs=stderr,stdout\n--log-format=console\n--metrics=extensive\n",
        "",
    );
    add(
        "single",
        "--initial-cluster=default=http://localhost:2380\n",
        "",
    );
    add("mistake", "--no-such-flag", "");
    add("stray", "--name=a\nword", "");
    add(
        "environment",
        "",
        "ETCD_NAME=two\nETCD_DATA_DIR=/d\nETCD_ELECTION_TIMEOUT=2000\nETCD_UNKNOWN=x\nHOME=/root\n",
    );
    add("shadowed", "--name=a", "ETCD_NAME=b\n");
    seeds
}

/// From a file.
fn file_seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut add = |name: &str, args: &str, env: &str, file: Option<&str>| {
        seeds.push(load_seed(name, args, env, file));
    };
    let file = "name: one\ndata-dir: /data\nheartbeat-interval: 100\n\
                listen-client-urls: http://10.0.0.1:2379\nadvertise-client-urls: http://one:2379\n\
                initial-cluster: one=http://one:2380\n\
                initial-advertise-peer-urls: http://one:2380\nlog-outputs: [stderr]\n\
                auto-compaction-retention: \"1h\"\nunknown: {a: [1, 2.5, null]}\n\
                client-transport-security:\n  cert-file: ''\n";
    add("file", "--config-file=x", "", Some(file));
    add(
        "file-of-environment",
        "",
        "ETCD_CONFIG_FILE=x\n",
        Some(file),
    );
    add(
        "file-json",
        "--config-file=x",
        "",
        Some("{\"name\": \"one\", \"pre-vote\": false}"),
    );
    add("file-missing", "--config-file=x", "", None);
    add("file-list", "--config-file=x", "", Some("- a\n- b\n"));
    add("file-broken", "--config-file=x", "", Some("name: [a\n"));
    add(
        "file-aliases",
        "--config-file=x",
        "",
        Some("a: &a [x, x, x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\nd: [*c, *c]\n"),
    );
    let scalars = ["x"; 300].join(",");
    let aliases = ["*a"; 300].join(",");
    let many = format!("a: &a [{scalars}]\nb: [{aliases}]\n");
    add("file-many-aliases", "--config-file=x", "", Some(&many));
    let deep = format!("a: {}{}", "[".repeat(200), "]".repeat(200));
    add("file-deep", "--config-file=x", "", Some(&deep));
    add(
        "file-numbers",
        "--config-file=x",
        "",
        Some("snapshot-count: 1e3\nmax-wals: 0o17\nelection-timeout: 1_000\nmax-txn-ops: -1\n"),
    );
    seeds
}

pub fn value_seeds() -> Vec<Seed> {
    let kinds: [&[&str]; 4] = [
        &[
            "1h30m",
            "250ms",
            "-1.5s",
            "0",
            ".5s",
            "2562047h47m16.854775807s",
            "5",
            "1e9s",
            "-9223372036854775808ns",
            "3\u{b5}s",
            "0.00000000000000000000001h",
        ],
        &[
            "http://10.0.0.1:2380",
            "https://[::1]:2379",
            "unix://localhost:0",
            "http://a:1/",
            "HTTP://user@host%20:99",
            "unixs:///path%2F",
            "http://[fe80::1%25eth0]:80",
            "http://h\u{f6}st:2380",
            "http://a:1#f",
            "http://a:1?q",
            " http://a:1 ",
            "x:y",
        ],
        &["http://b:2,http://a:1,http://a:1", "http://a:1,", ","],
        &[
            "one=http://one:2380,two=http://two:2380,one=http://one:7001",
            "=http://a:1",
            "a=unix://b:0",
            "one=http://one:2380,,",
            "a==",
            " a =http://b:1",
        ],
    ];
    let mut seeds = Vec::new();
    for (kind, texts) in kinds.iter().enumerate() {
        for (at, text) in texts.iter().enumerate() {
            let bytes = [&[kind as u8], text.as_bytes()].concat();
            let names = ["duration", "url", "urls", "cluster"];
            seeds.push(Seed::new(format!("{}-{at}", names[kind]), bytes));
        }
    }
    seeds
}
