//! The log in systemd's journal, in its own protocol: a datagram a line, with the fields that etcd
//! sends. A line that the journal does not take is written to stderr.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;

use serde::Deserialize;

const SOCKET: &str = "/run/systemd/journal/socket";

pub struct Journal {
    socket: UnixDatagram,
    program: String,
}

/// What a line says of itself.
#[derive(Default, Deserialize)]
struct Origin<'a> {
    #[serde(default)]
    level: &'a str,
    #[serde(default)]
    caller: &'a str,
}

impl Journal {
    /// # Errors
    /// Nobody listens for it.
    pub fn open() -> io::Result<Self> {
        Self::at(SOCKET)
    }

    fn at(path: &str) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        // The thread that writes the log must not wait for a journal that does not read.
        socket.set_nonblocking(true)?;
        let program = std::env::args_os().next().unwrap_or_default();
        let program = std::path::Path::new(&program)
            .file_name()
            .unwrap_or_default();
        Ok(Self {
            socket,
            program: program.to_string_lossy().into_owned(),
        })
    }

    fn entry(&self, line: &str) -> Vec<u8> {
        let origin = origin_of(line);
        let package = origin
            .caller
            .rsplit_once('/')
            .map_or(".", |(package, _)| package);
        let priority = match origin.level {
            "debug" => '7',
            "warn" => '4',
            "error" => '3',
            "dpanic" | "panic" | "fatal" => '2',
            _ => '6',
        };
        format!(
            "PRIORITY={priority}\nMESSAGE={line}\nPACKAGE={package}\nSYSLOG_IDENTIFIER={}\n",
            self.program
        )
        .into_bytes()
    }
}

/// In JSON by its fields, on the console by its columns.
fn origin_of(line: &str) -> Origin<'_> {
    if line.starts_with('{') {
        return serde_json::from_str(line).unwrap_or_default();
    }
    let mut columns = line.split('\t').skip(1);
    Origin {
        level: columns.next().unwrap_or_default(),
        caller: columns
            .find(|column| column.contains(':'))
            .unwrap_or_default(),
    }
}

impl Write for Journal {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        for line in String::from_utf8_lossy(text).lines() {
            if self.socket.send(&self.entry(line)).is_err() {
                writeln!(io::stderr(), "{line}")?;
            }
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_entry_with_its_priority_and_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("socket");
        let reader = UnixDatagram::bind(&path).expect("binds");
        let mut journal = Journal::at(path.to_str().expect("UTF-8")).expect("connects");
        journal.program = "etcd".to_owned();
        let json = r#"{"level":"warn","ts":"t","caller":"etcdmain/etcd.go:65","msg":"m\n"}"#;
        let console = "2026\tpanic\traft\tserver/run.rs:120\tm";
        journal
            .write_all(format!("{json}\n{console}\nodd\n").as_bytes())
            .expect("writes");
        for expected in [
            format!("PRIORITY=4\nMESSAGE={json}\nPACKAGE=etcdmain\nSYSLOG_IDENTIFIER=etcd\n"),
            format!("PRIORITY=2\nMESSAGE={console}\nPACKAGE=server\nSYSLOG_IDENTIFIER=etcd\n"),
            "PRIORITY=6\nMESSAGE=odd\nPACKAGE=.\nSYSLOG_IDENTIFIER=etcd\n".to_owned(),
        ] {
            let mut entry = [0; 512];
            let len = reader.recv(&mut entry).expect("an entry");
            assert_eq!(String::from_utf8_lossy(&entry[..len]), expected);
        }
        assert!(Journal::at("/nowhere").is_err());
    }
}
