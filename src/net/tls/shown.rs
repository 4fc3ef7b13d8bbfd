//! What the other side has shown in a handshake that fails, and why that was refused: for the log,
//! since the library keeps both to itself.
//!
//! A verifier serves many handshakes and is called without a word of which, but always within the
//! task that makes the handshake.

use std::cell::RefCell;
use std::future::Future;

use super::Certificate;

tokio::task_local! {
    static SHOWN: RefCell<Shown>;
}

/// See the module.
#[derive(Debug, Default)]
pub struct Shown {
    /// None if nothing was shown that is a certificate.
    pub certificate: Option<Certificate>,
    /// None if the library's error says it.
    pub reason: Option<String>,
}

/// Makes a handshake, and says what was shown in it.
pub async fn during<F: Future>(handshake: F) -> (F::Output, Shown) {
    let noted = async {
        let output = handshake.await;
        (output, SHOWN.with(RefCell::take))
    };
    SHOWN.scope(RefCell::default(), noted).await
}

/// Notes a certificate that is refused.
pub fn note(certificate: Option<Certificate>, reason: Option<String>) {
    // Nobody asks outside of a handshake.
    let _ = SHOWN.try_with(|shown| {
        *shown.borrow_mut() = Shown {
            certificate,
            reason,
        };
    });
}
