//! Connections of HTTP/1 that continue as something else: an answer of status 101 names what takes
//! them over. That runs in the place of the connection: it counts as one, and ends with its member.

use std::sync::Arc;

use http::header::UPGRADE;
use http::{Request, Response, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use parking_lot::Mutex;
use tonic::body::Body;

use crate::env::Boxed;

type Run = Box<dyn FnOnce(Upgraded) -> Boxed<()> + Send>;

/// What takes a connection over; an extension of the answer.
#[derive(Clone)]
pub struct Takeover(Arc<Mutex<Option<Run>>>);

impl Takeover {
    pub fn new(run: impl FnOnce(Upgraded) -> Boxed<()> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(run)))))
    }
}

/// What a connection becomes, once there is an answer that says so.
#[derive(Clone, Default)]
pub struct Upcoming(Arc<Mutex<Option<(OnUpgrade, Run)>>>);

impl Upcoming {
    /// What a request needs that asks for it.
    pub fn wish<B>(request: &mut Request<B>) -> Option<OnUpgrade> {
        let asks = request.headers().contains_key(UPGRADE);
        asks.then(|| hyper::upgrade::on(request))
    }

    /// Checks the answer.
    pub fn answered(&self, wish: Option<OnUpgrade>, answer: &mut Response<Body>) {
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        let takeover = answer.extensions_mut().remove::<Takeover>();
        let run = takeover.and_then(|takeover| takeover.0.lock().take());
        if let (Some(wish), Some(run)) = (wish, run) {
            *self.0.lock() = Some((wish, run));
        }
    }

    /// Runs what took the connection over, if anything did, to its end.
    pub async fn run(self) {
        let upcoming = self.0.lock().take();
        if let Some((wish, run)) = upcoming
            && let Ok(upgraded) = wish.await
        {
            run(upgraded).await;
        }
    }
}
