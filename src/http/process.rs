//! What the operating system says about this process. What cannot be read is left out.

use std::fs;

use rustix::process::{Resource, getrlimit};

use crate::metrics::Scrape;

/// Fields of /proc/self/stat, counted from the one after the command's name.
const STATE: usize = 0;
const USER_TIME: usize = 11;
const SYSTEM_TIME: usize = 12;
const START_TIME: usize = 19;
const VIRTUAL_BYTES: usize = 20;
const RESIDENT_PAGES: usize = 21;

/// Fills in what starts with `process_` and `os_`.
pub fn read(scrape: &mut Scrape) {
    let open = open_files();
    scrape.fd_used = open;
    scrape.open_fds = open;
    scrape.fd_limit = Some(file_limit());
    scrape.max_fds = scrape.fd_limit;
    scrape.virtual_max_bytes = Some(limit(Resource::As));
    if let Ok(stat) = fs::read_to_string("/proc/self/stat") {
        read_stat(&stat, scrape);
    }
    if let Ok(netstat) = fs::read_to_string("/proc/self/net/netstat") {
        scrape.network_received_bytes = ip_octets(&netstat, "InOctets");
        scrape.network_sent_bytes = ip_octets(&netstat, "OutOctets");
    }
}

/// How many files may be open.
pub fn file_limit() -> f64 {
    limit(Resource::Nofile)
}

/// Resident memory in bytes.
pub fn resident_bytes() -> Option<f64> {
    let mut scrape = Scrape::default();
    read_stat(&fs::read_to_string("/proc/self/stat").ok()?, &mut scrape);
    scrape.resident_bytes
}

/// The threads: a line for each with its id, name, state and the seconds of a processor that it took.
pub fn threads() -> String {
    let tasks = fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    // A thread that has ended meanwhile is none.
    let mut lines: Vec<String> = stats.filter_map(|stat| thread(&stat)).collect();
    lines.sort();
    format!("threads: {}\n{}", lines.len(), lines.concat())
}

fn thread(stat: &str) -> Option<String> {
    let (head, fields) = stat.rsplit_once(')')?;
    let (id, name) = head.split_once(" (")?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    let ticks = ticks(USER_TIME)? + ticks(SYSTEM_TIME)?;
    let cpu_s = ticks / rustix::param::clock_ticks_per_second() as f64;
    let state = fields.get(STATE)?;
    Some(format!("{id:>8} {name:<16} {state} {cpu_s:.2}\n"))
}

fn limit(resource: Resource) -> f64 {
    // No limit is the largest number, as Prometheus' client shows it.
    getrlimit(resource).current.unwrap_or(u64::MAX) as f64
}

fn open_files() -> Option<f64> {
    // The directory itself is open while it is read.
    let count = fs::read_dir("/proc/self/fd").ok()?.count();
    Some(count.saturating_sub(1) as f64)
}

fn read_stat(stat: &str, scrape: &mut Scrape) {
    // The command's name stands in brackets and may hold anything.
    let Some((_, fields)) = stat.rsplit_once(')') else {
        return;
    };
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let field = |at: usize| fields.get(at)?.parse::<f64>().ok();
    let ticks_per_s = rustix::param::clock_ticks_per_second() as f64;
    let times = field(USER_TIME).zip(field(SYSTEM_TIME));
    scrape.cpu_s = times.map(|(user, system)| (user + system) / ticks_per_s);
    scrape.virtual_bytes = field(VIRTUAL_BYTES);
    let page_bytes = rustix::param::page_size() as f64;
    scrape.resident_bytes = field(RESIDENT_PAGES).map(|pages| pages * page_bytes);
    let started = field(START_TIME).zip(boot_time_s());
    scrape.start_time_s = started.map(|(ticks, boot)| boot + ticks / ticks_per_s);
}

fn boot_time_s() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

/// A figure of the group `IpExt`: one line names them, the next has the numbers.
fn ip_octets(netstat: &str, name: &str) -> Option<f64> {
    let mut lines = netstat.lines().filter(|line| line.starts_with("IpExt:"));
    let names = lines.next()?.split_ascii_whitespace();
    let mut numbers = lines.next()?.split_ascii_whitespace();
    let at = names.into_iter().position(|found| found == name)?;
    numbers.nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_may_hold_brackets_and_blanks() {
        let mut scrape = Scrape::default();
        let fields: Vec<_> = (0..40).map(|field| field.to_string()).collect();
        read_stat(&format!("12 (a) b (c) {}", fields.join(" ")), &mut scrape);
        assert_eq!(scrape.virtual_bytes, Some(20.0));
        let ticks_per_s = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(scrape.cpu_s, Some(23.0 / ticks_per_s));
    }

    #[test]
    fn threads_are_listed() {
        let list = threads();
        let count = list
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("threads: "));
        let count: usize = count.and_then(|count| count.parse().ok()).expect("a count");
        assert!(count >= 2 && list.lines().count() == count + 1, "{list}");
        let fields: Vec<_> = (0..40).map(|field| field.to_string()).collect();
        let line = thread(&format!("12 (a) b (c) S {}", fields[1..].join(" ")));
        let line = line.expect("a line");
        let columns: Vec<&str> = line.split_ascii_whitespace().collect();
        assert_eq!(columns[..5], ["12", "a)", "b", "(c", "S"], "{line}");
        assert!(columns[5].parse::<f64>().is_ok(), "{line}");
    }

    #[test]
    fn octets_are_found_by_name() {
        let netstat = "TcpExt: A B\nTcpExt: 1 2\nIpExt: InNoRoutes InOctets\nIpExt: 3 4\n";
        assert_eq!(ip_octets(netstat, "InOctets"), Some(4.0));
        assert_eq!(ip_octets(netstat, "OutOctets"), None);
    }

    #[test]
    fn this_process_is_seen() {
        let mut scrape = Scrape::default();
        read(&mut scrape);
        assert!(scrape.open_fds >= Some(3.0), "{scrape:?}");
        assert!(scrape.resident_bytes > Some(1e5), "{scrape:?}");
        assert!(scrape.start_time_s > Some(1e9), "{scrape:?}");
        assert_eq!(scrape.resident_bytes.is_some(), resident_bytes().is_some());
    }
}
