//! The page of metrics, made once for all who ask within a moment.
//!
//! Rendering reads files and formats thousands of lines, so scrapes share it: a request joins
//! the page that is rendered next, never one that was begun before, so that what happened before a
//! scrape is in it. Two pages are rendered `PACE` apart at least, and never at the same time:
//! however many ask, and whether they read their answers or not, there is one copy of each.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::scrape;
use crate::budget::Ledger;
use crate::service::handle::Handle;

/// From the beginning of a page to that of the next.
const PACE: Duration = Duration::from_millis(50);

/// A page as it was asked for; none where nobody did.
#[derive(Clone, Default)]
struct Page {
    plain: Option<Bytes>,
    gzipped: Option<Bytes>,
}

/// A page that is not begun yet.
#[derive(Clone)]
struct Next {
    plain: bool,
    gzipped: bool,
    made: watch::Receiver<Option<Page>>,
}

/// See the module.
pub struct MetricsPage {
    next: Mutex<Option<Next>>,
    /// Held while a page is made: when it was begun.
    begun: tokio::sync::Mutex<Option<Duration>>,
}

impl MetricsPage {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            next: Mutex::default(),
            begun: tokio::sync::Mutex::default(),
        })
    }

    /// The next page; none where it could not be made.
    pub async fn get(
        self: &Arc<Self>,
        handle: &Handle,
        memory: Option<&Arc<Ledger>>,
        gzipped: bool,
    ) -> Option<Bytes> {
        let mut made = {
            let mut next = self.next.lock();
            let next = next.get_or_insert_with(|| self.begin(handle, memory));
            match gzipped {
                true => next.gzipped = true,
                false => next.plain = true,
            }
            next.made.clone()
        };
        let page = made.wait_for(Option::is_some).await.ok()?.clone()?;
        match gzipped {
            true => page.gzipped,
            false => page.plain,
        }
    }

    /// Has a page made, whether those who wait for it stay or not.
    fn begin(self: &Arc<Self>, handle: &Handle, memory: Option<&Arc<Ledger>>) -> Next {
        let (sender, made) = watch::channel(None);
        let (pages, handle, memory) = (self.clone(), handle.clone(), memory.cloned());
        handle.clone().spawn(async move {
            let mut begun = pages.begun.lock().await;
            let clock = &handle.shared().clock;
            if let Some(begun) = *begun {
                let left = (begun + PACE).saturating_sub(clock.now());
                if !left.is_zero() {
                    clock.sleep(left).await;
                }
            }
            *begun = Some(clock.now());
            let Some(next) = pages.next.lock().take() else {
                return;
            };
            let rendering = handle.clone();
            let page = handle.blocking(move || render(&rendering, memory.as_deref(), &next));
            if let Ok(page) = page.await {
                sender.send_replace(Some(page));
            }
        });
        Next {
            plain: false,
            gzipped: false,
            made,
        }
    }
}

fn render(handle: &Handle, memory: Option<&Ledger>, next: &Next) -> Page {
    let scrape = scrape::scrape(handle, memory);
    let text = handle.shared().metrics.render(&scrape);
    let gzipped = next.gzipped.then(|| gzip(text.as_bytes()));
    Page {
        gzipped: gzipped.and_then(Result::ok).map(Bytes::from),
        // The buffer that it grew in may be twice as large.
        plain: next.plain.then(|| Bytes::copy_from_slice(text.as_bytes())),
    }
}

fn gzip(text: &[u8]) -> std::io::Result<Vec<u8>> {
    let level = flate2::Compression::fast();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
    encoder.write_all(text)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;
    use crate::env::SystemClock;
    use crate::service::fixture;
    use crate::transport::NoNetwork;

    #[tokio::test]
    async fn who_asks_at_once_shares_a_page_and_later_ones_see_what_happened() {
        let clock = Arc::new(SystemClock::new());
        let (handle, _inbox) = fixture::with_clock(Arc::new(NoNetwork), clock);
        let page = MetricsPage::new();
        let asked = (0..100).map(|at| page.get(&handle, None, at % 2 == 0));
        let pages = futures_util::future::join_all(asked).await;
        let [zipped, plain] = [0, 1].map(|at| pages[at].as_ref().expect("a page"));
        assert_ne!(zipped, plain);
        for (at, page) in pages.iter().enumerate() {
            let shared = if at % 2 == 0 { zipped } else { plain };
            let page = page.as_ref().expect("a page");
            assert_eq!(page.as_ptr(), shared.as_ptr(), "a copy for {at}");
        }
        let before = handle.shared().clock.now();
        for count in 1..=3 {
            handle.shared().metrics.ranges.increment();
            let text = page.get(&handle, None, false).await.expect("a page");
            let line = format!("\netcd_mvcc_range_total {count}\n");
            assert!(String::from_utf8_lossy(&text).contains(&line), "{line}");
        }
        assert!(handle.shared().clock.now() - before > 2 * PACE);
    }

    #[tokio::test]
    async fn a_page_is_made_though_nobody_waits_for_it() {
        let clock = Arc::new(SystemClock::new());
        let (handle, _inbox) = fixture::with_clock(Arc::new(NoNetwork), clock);
        let page = MetricsPage::new();
        {
            let mut left = std::pin::pin!(page.get(&handle, None, false));
            let polled = std::future::poll_fn(|cx| Poll::Ready(left.as_mut().poll(cx)));
            assert!(polled.await.is_pending());
        }
        assert!(page.get(&handle, None, true).await.is_some());
        assert!(page.next.lock().is_none());
    }
}
