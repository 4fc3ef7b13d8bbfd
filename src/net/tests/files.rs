//! Listeners at files.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener as Outsider;
use std::path::Path;

use super::*;

fn bind(path: &Path) -> Result<listen::Listener, String> {
    let address = Address::File(path.to_owned());
    listen::bind(&address, listen::SocketOptions::default()).map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_file_serves_plain_text_or_tls_or_both() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("localhost:2379");
    each_security(|| Address::File(path.clone())).await;
    assert!(!path.exists(), "a listener takes its file with it");
}

#[tokio::test]
async fn a_file_that_a_dead_process_left_is_replaced() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s");
    drop(Outsider::bind(&path).expect("binds"));
    let before = std::fs::metadata(&path).expect("it stays");
    let listener = bind(&path).expect("binds");
    let after = std::fs::metadata(&path).expect("is there");
    let identity = |file: &std::fs::Metadata| (file.ino(), file.ctime(), file.ctime_nsec());
    assert_ne!(identity(&before), identity(&after));
    drop(listener);
    assert!(!path.exists());
}

#[tokio::test]
async fn what_others_have_is_left_to_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s");
    let taken = format!(
        "listen unix {}: bind: address already in use",
        path.display()
    );

    let outsider = Outsider::bind(&path).expect("binds");
    assert_eq!(bind(&path).err(), Some(taken.clone()));
    std::os::unix::net::UnixStream::connect(&path).expect("still works");
    drop(outsider);
    std::fs::remove_file(&path).expect("removes");

    std::fs::write(&path, "text").expect("writes");
    assert_eq!(bind(&path).err(), Some(taken));
    assert_eq!(std::fs::read(&path).expect("reads"), b"text");
    std::fs::remove_file(&path).expect("removes");

    // Who has the name now keeps it when the first one ends.
    let first = bind(&path).expect("binds");
    std::fs::remove_file(&path).expect("removes");
    let second = bind(&path).expect("binds");
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());

    let error = bind(&dir.path().join("none/s")).err().expect("refused");
    assert!(
        error.ends_with("bind: no such file or directory"),
        "{error}"
    );
}
