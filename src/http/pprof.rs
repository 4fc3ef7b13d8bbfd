//! /debug/pprof/: profiles where Go's programs have theirs, for the tools that collect them there.
//!
//! What Go's pages tell of goroutines and of its locks has no like here, and is refused in a sentence.
//! A profile takes time and memory, so one that watches the processors is made at once, and for five
//! minutes at most.

use std::time::Duration;

use bytes::Buf;
use http::{Request, Response, StatusCode};
use tonic::body::Body;

use super::query::{self, Query};
use super::{body, page, process};
use crate::env::Clock;
use crate::profile::{self, cpu, heap};

/// Where a request names none, as in Go.
const SECONDS: u64 = 30;
const MAX_SECONDS: u64 = 300;
/// Some thousand addresses.
const MAX_SYMBOLS_BYTES: usize = 65_536;

const INDEX: &str = "<html><head><title>/debug/pprof/</title></head><body>\n\
<p>Profiles of this process, for <code>go tool pprof URL</code>.</p>\n<ul>\n\
<li><a href=\"heap\">heap</a>: what holds the memory that Rust allocates, sampled; RocksDB's is not in it</li>\n\
<li><a href=\"allocs\">allocs</a>: the same, and what was freed since the start</li>\n\
<li><a href=\"profile\">profile</a>: where the processors' time goes, for <code>?seconds=</code> 30</li>\n\
<li><a href=\"goroutine\">goroutine</a>: the threads, their states and times; a text</li>\n\
<li><a href=\"cmdline\">cmdline</a>: the command line</li>\n\
<li><a href=\"symbol\">symbol</a>: the functions at addresses</li>\n\
</ul>\n</body></html>\n";

/// Answers a request for a profile, for a listener that has nothing of a member; another is given back.
///
/// # Errors
/// The request.
pub async fn answer<B>(request: Request<B>, clock: &dyn Clock) -> Result<Response<Body>, Request<B>>
where
    B: http_body::Body<Data: Buf>,
{
    let parts = query::parts(request.uri());
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let ["debug", "pprof", names @ ..] = parts.as_slice() else {
        return Err(request);
    };
    let (head, sent) = request.into_parts();
    Ok(respond(names, &Request::from_parts(head, ()), sent, clock).await)
}

/// Answers a request for what is below the page.
pub(super) async fn respond<B>(
    names: &[&str],
    request: &Request<()>,
    sent: B,
    clock: &dyn Clock,
) -> Response<Body>
where
    B: http_body::Body<Data: Buf>,
{
    let query = Query::of(request.uri());
    match names {
        [] => page::moved("/debug/pprof/"),
        [""] => page::html(INDEX),
        ["profile"] => processors(&query, clock).await,
        ["heap"] => memory(&query, "heap", "inuse_space", clock).await,
        ["allocs"] => memory(&query, "allocs", "alloc_space", clock).await,
        ["goroutine"] => page::plain_nosniff(process::threads()),
        ["cmdline"] => page::plain_nosniff(command_line()),
        ["symbol"] => {
            // As in Go, a query where nothing is posted.
            let posted = match *request.method() == http::Method::POST {
                true => body::read(sent, MAX_SYMBOLS_BYTES).await,
                false => Ok(request.uri().query().unwrap_or_default().to_owned().into()),
            };
            match posted {
                Ok(addresses) => functions(String::from_utf8_lossy(&addresses).into_owned()).await,
                Err(reason) => refusal(StatusCode::BAD_REQUEST, &reason),
            }
        }
        ["block" | "mutex"] => absent(
            "Waits for locks are not recorded; the profile of the processors is at /debug/pprof/profile.",
        ),
        ["threadcreate"] => absent(
            "Who started a thread is not recorded; the threads are at /debug/pprof/goroutine.",
        ),
        ["trace"] => absent(
            "There is no runtime whose events could be traced; the profile of the processors is at /debug/pprof/profile.",
        ),
        _ => absent("Unknown profile"),
    }
}

fn absent(why: &str) -> Response<Body> {
    refusal(StatusCode::NOT_FOUND, why)
}

/// A refusal that the tool shows.
fn refusal(status: StatusCode, why: &str) -> Response<Body> {
    let mut response = page::refusal(status, why);
    let marked = http::HeaderValue::from_static("1");
    response.headers_mut().insert("x-go-pprof", marked);
    response
}

fn failed(why: impl std::fmt::Display) -> Response<Body> {
    refusal(StatusCode::INTERNAL_SERVER_ERROR, &why.to_string())
}

async fn processors(query: &Query, clock: &dyn Clock) -> Response<Body> {
    let seconds = match query.first("seconds").map(str::parse) {
        Some(Ok(0)) | Some(Err(_)) | None => SECONDS,
        Some(Ok(seconds)) => seconds,
    };
    if seconds > MAX_SECONDS {
        let why = format!("A profile takes {MAX_SECONDS} seconds at most.");
        return refusal(StatusCode::BAD_REQUEST, &why);
    }
    let recording = match beside(cpu::start).await {
        Ok(Ok(recording)) => recording,
        Ok(Err(error)) => return failed(format!("Could not enable CPU profiling: {error}")),
        Err(error) => return failed(error),
    };
    // A client that disconnects ends the recording, too.
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let until = clock.wall();
    match beside(move || recording.finish(until)).await {
        Ok(Ok(file)) => page::attachment(file, "profile"),
        Ok(Err(error)) => failed(error),
        Err(error) => failed(error),
    }
}

async fn memory(
    query: &Query,
    name: &'static str,
    shows: &'static str,
    clock: &dyn Clock,
) -> Response<Body> {
    // Go's are texts for `debug`, and differences over `seconds`.
    for parameter in ["debug", "seconds"] {
        if !matches!(query.first(parameter), None | Some("" | "0")) {
            let why = format!("The parameter {parameter} is not supported for {name}.");
            return refusal(StatusCode::BAD_REQUEST, &why);
        }
    }
    let at = clock.wall();
    match beside(move || heap::profile(at, shows)).await {
        Ok(Ok(file)) => page::attachment(file, name),
        Ok(Err(error)) => failed(error),
        Err(error) => failed(error),
    }
}

/// The arguments, with zero bytes between them.
fn command_line() -> String {
    let arguments = std::env::args_os().map(|one| one.to_string_lossy().into_owned());
    arguments.collect::<Vec<_>>().join("\0")
}

/// The functions at addresses that have a `+` between them.
async fn functions(addresses: String) -> Response<Body> {
    let lines = beside(move || {
        let addresses = addresses.split('+').filter_map(address);
        let lines = profile::functions_at(addresses)
            .into_iter()
            .map(|(address, function)| format!("{address:#x} {function}\n"));
        format!("num_symbols: 1\n{}", lines.collect::<String>())
    });
    match lines.await {
        Ok(lines) => page::plain_nosniff(lines),
        Err(error) => failed(error),
    }
}

/// A number, hexadecimal behind `0x`; none of 0.
fn address(text: &str) -> Option<usize> {
    let text = text.trim();
    let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => usize::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.ok().filter(|number| *number != 0)
}

/// Does what reads the program's symbols, which takes long, beside the network's threads.
async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    tokio::task::spawn_blocking(work).await
}
