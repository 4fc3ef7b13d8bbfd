//! The functions behind addresses, from the program's own symbols.

use std::ffi::c_void;

/// A call within a stack.
pub struct Call {
    /// Without the hash that the compiler puts behind it.
    pub function: String,
    /// Empty where it is not known.
    pub file: String,
    /// 0 where it is not known.
    pub line: u32,
}

/// Hands over the calls that an address on a stack stands for: those that were inlined there, from
/// the innermost, then the function itself.
pub fn calls_at(address: usize, mut call: impl FnMut(Call)) {
    backtrace::resolve(address as *mut c_void, |symbol| {
        let Some(name) = symbol.name() else {
            return;
        };
        let file = symbol.filename().map(|path| path.to_string_lossy());
        let file = file.unwrap_or_default().into_owned();
        call(Call {
            function: qualified(&format!("{name:#}"), &file),
            file,
            line: symbol.lineno().unwrap_or_default(),
        });
    });
}

/// A name with its module, by its file where the name has none: tables of lines have only the last
/// part of a name, and readers take functions of one name for one.
fn qualified(name: &str, file: &str) -> String {
    // Types may be paths, too.
    let plain = name.split('<').next().unwrap_or_default();
    let path = file.strip_suffix(".rs");
    let (Some(path), false) = (path, plain.contains("::") || name.starts_with('<')) else {
        return name.to_owned();
    };
    let parts = path.rsplit_once("/src/");
    let (root, path) = parts.unwrap_or(("", path.trim_start_matches("src/")));
    let foreign = root.contains("/registry/") || root.contains("/library/");
    let package = root.rsplit('/').next().filter(|_| foreign);
    let mut parts = vec![package.map_or("etched", unversioned).replace('-', "_")];
    // What a build generates lies at no place that says more.
    let path = match path.starts_with('/') {
        true => path.rsplit('/').next().unwrap_or_default(),
        false => path,
    };
    let modules = path
        .split('/')
        .filter(|part| !["mod", "lib", "main"].contains(part));
    parts.extend(modules.map(str::to_owned));
    parts.push(name.to_owned());
    parts.join("::")
}

/// The name of a package in the name of its directory.
fn unversioned(directory: &str) -> &str {
    match directory.rsplit_once('-') {
        Some((name, version)) if version.starts_with(|c: char| c.is_ascii_digit()) => name,
        _ => directory,
    }
}

/// The functions at addresses; without those of which there is none.
pub fn functions_at(addresses: impl Iterator<Item = usize>) -> Vec<(usize, String)> {
    let _reading = Reading;
    let function = |address: usize| {
        let mut function = None;
        // An address on a stack is that behind a call.
        calls_at(address.saturating_add(1), |call| {
            function = Some(call.function)
        });
        Some((address, function?))
    };
    addresses.filter_map(function).collect()
}

/// Held by who has functions named. What was read for it is forgotten at its end: the program's
/// symbols take tens of megabytes.
pub struct Reading;

impl Drop for Reading {
    fn drop(&mut self) {
        backtrace::clear_symbol_cache();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_the_modules_of_their_files() {
        for (name, file, expected) in [
            ("run", "/home/a/etched/src/raft/mod.rs", "etched::raft::run"),
            ("main", "src/main.rs", "etched::main"),
            (
                "poll<a::B>",
                "/h/registry/src/index-1/tokio-util-1.45.0/src/task/core.rs",
                "tokio_util::task::core::poll<a::B>",
            ),
            (
                "call_once",
                "/rustc/1f/library/core/src/ops/function.rs",
                "core::ops::function::call_once",
            ),
            (
                "encode",
                "/home/a/target/out/etcdserverpb.rs",
                "etched::etcdserverpb::encode",
            ),
            (
                "<a::B as C>::d",
                "/rustc/1f/library/core/src/e.rs",
                "<a::B as C>::d",
            ),
            ("a::b", "src/c.rs", "a::b"),
            ("_ZN7rocksdb3fooEv", "", "_ZN7rocksdb3fooEv"),
            ("foo", "/a/src/b.cc", "foo"),
        ] {
            assert_eq!(qualified(name, file), expected, "{name} {file}");
        }
    }
}
