//! The machine's properties that a configuration needs: the only part of this module that reads
//! them.

use std::ffi::OsString;
use std::io;
use std::net::UdpSocket;
use std::path::Path;

/// What the machine gives a configuration.
pub struct Surroundings<'a> {
    pub env: Vec<(OsString, OsString)>,
    pub read_file: &'a dyn Fn(&Path) -> io::Result<String>,
    /// The machine's own address on its default route; determined only if needed.
    pub default_host: &'a dyn Fn() -> Option<String>,
    /// The memory available to this process; determined only if needed.
    pub memory_bytes: &'a dyn Fn() -> Option<u64>,
}

/// The source address of this machine's default route, IPv4 if possible.
///
/// Connecting a datagram socket sends nothing, it only selects the route. The targets are addresses
/// reserved for documentation.
pub fn default_host() -> Option<String> {
    let ask = |from: &str, to: &str| -> io::Result<String> {
        let socket = UdpSocket::bind(from)?;
        socket.connect(to)?;
        Ok(socket.local_addr()?.ip().to_string())
    };
    ask("0.0.0.0:0", "198.51.100.1:9")
        .or_else(|_| ask("[::]:0", "[2001:db8::1]:9"))
        .ok()
}

/// The machine's memory, or this process's share of it if its control group sets one.
pub fn memory_bytes() -> Option<u64> {
    let limits = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let limit = limits.iter().find_map(|path| number_in(Path::new(path)));
    match (total_bytes(), limit) {
        (Some(total), Some(limit)) => Some(total.min(limit)),
        (total, limit) => total.or(limit),
    }
}

fn number_in(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn total_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// The processor's architecture, as Go names it.
pub fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
