//! Files that are read again, and a file system that does not answer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use parking_lot::Mutex;

use super::super::reread::Reread;
use super::*;

/// A file, and something made from it: each reading after the first takes as long as the test wants.
struct Slow {
    files: Files,
    reread: Arc<Reread<Vec<u8>>>,
    readings: Arc<AtomicUsize>,
    begun: mpsc::Receiver<()>,
    resume: mpsc::Sender<()>,
}

impl Slow {
    fn new() -> Self {
        let files = Files::new();
        let path = files.write("file", "old");
        let readings = Arc::new(AtomicUsize::new(0));
        let (begins, begun) = mpsc::channel();
        let (resume, word) = mpsc::channel::<()>();
        let (word, counted, read) = (Mutex::new(word), readings.clone(), path.clone());
        let make = move || {
            if counted.fetch_add(1, Ordering::SeqCst) > 0 {
                begins.send(()).expect("somebody counts");
                word.lock().recv().expect("a word");
            }
            Ok(fs::read(&read).expect("reads"))
        };
        let reread = Reread::new("test", vec![path], make).expect("starts");
        Self {
            files,
            reread: Arc::new(reread),
            readings,
            begun,
            resume,
        }
    }

    /// Of so many connections that come at once, what each sees.
    fn connect(&self, count: usize) -> Vec<tokio::task::JoinHandle<Vec<u8>>> {
        let one = |_| {
            let reread = self.reread.clone();
            tokio::spawn(async move { reread.current().await.to_vec() })
        };
        (0..count).map(one).collect()
    }

    /// Waits for the next reading, on the only thread that the runtime serves with.
    async fn begins(&self) {
        while self.begun.try_recv().is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn all(connections: Vec<tokio::task::JoinHandle<Vec<u8>>>) -> Vec<Vec<u8>> {
    let mut seen = Vec::new();
    for connection in connections {
        let one = tokio::time::timeout(LIMIT, connection).await;
        seen.push(one.expect("in time").expect("ends"));
    }
    seen
}

#[tokio::test]
async fn who_comes_after_a_change_sees_it_and_many_share_a_reading() {
    let slow = Slow::new();
    slow.files.write("file", "newer");
    let before = slow.connect(50);
    slow.begins().await;
    // What changes from here on, the reading that is under way may have missed.
    slow.resume.send(()).expect("it waits");
    assert_eq!(all(before).await, vec![b"newer".to_vec(); 50]);
    slow.files.write("file", "the newest");
    let after = slow.connect(50);
    slow.begins().await;
    slow.resume.send(()).expect("it waits");
    assert_eq!(all(after).await, vec![b"the newest".to_vec(); 50]);
    assert_eq!(slow.readings.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn who_comes_while_files_are_read_waits_for_a_check_of_its_own() {
    let slow = Slow::new();
    slow.files.write("file", "newer");
    let first = slow.connect(1);
    slow.begins().await;
    slow.files.write("file", "the newest");
    let second = slow.connect(10);
    slow.resume.send(()).expect("it waits");
    slow.begins().await;
    slow.resume.send(()).expect("it waits");
    all(first).await;
    assert_eq!(all(second).await, vec![b"the newest".to_vec(); 10]);
}

#[tokio::test]
async fn files_that_cannot_be_read_in_time_stay_as_they_were() {
    let slow = Slow::new();
    slow.files.write("file", "newer");
    let mut first = slow.connect(20);
    slow.begins().await;
    // Who leaves takes nothing along: the reading continues, and no other one begins.
    first.drain(..10).for_each(|left| left.abort());
    assert_eq!(all(first).await, vec![b"old".to_vec(); 10]);
    let later = Instant::now();
    assert_eq!(all(slow.connect(20)).await, vec![b"old".to_vec(); 20]);
    let waited = later.elapsed();
    assert!(waited < Duration::from_secs(1), "{waited:?}");
    assert_eq!(slow.readings.load(Ordering::SeqCst), 2);
    slow.resume.send(()).expect("it waits");
    loop {
        let seen = all(slow.connect(1)).await;
        match seen[0].as_slice() {
            b"newer" => break,
            old => assert_eq!(old, b"old"),
        }
    }
    assert_eq!(slow.readings.load(Ordering::SeqCst), 2);
}
