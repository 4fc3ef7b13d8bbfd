//! The body of a request, value by value.
//!
//! What of a value has come is counted in the budget of requests before more of it is read, with
//! what its parts will take when it is parsed. The calls that it becomes are counted by the
//! services, as every call. A text that has room and does not continue is refused, if others wait.
//! What HTTP/2 holds of a body counts as unread, here as in a call of gRPC.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::{Either, select};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use prost_reflect::MessageDescriptor;
use tonic::Status;

use super::message;
use super::values::Values;
use crate::budget::requests::OfConnection;
use crate::budget::{Held, unread};
use crate::env::{self, Boxed, Clock};
use crate::error::Error;

/// Up to this nothing is counted: a call takes as much in any case.
const FREE_BYTES: usize = 1 << 10;
/// What is counted at first, and then twice as much each time, or all that was announced once so
/// much of a text has come that the rest can be believed.
const FIRST_BYTES: usize = 16 << 10;
const BEGINNING_BYTES: usize = 8 << 10;
/// Base64 makes four bytes of three; the rest is for names and blanks.
const TEXT_FACTOR: usize = 2;
/// What a value may take, in messages of the largest size.
const COST_FACTOR: usize = 32;

const WAIT_LIMIT: Duration = Duration::from_secs(10);
const STALL_LIMIT: Duration = Duration::from_secs(2);
/// Less within `STALL_LIMIT` is no progress.
const PROGRESS_BYTES: usize = 16 << 10;

/// What bodies are counted by.
pub struct Limits {
    pub of_connection: OfConnection,
    pub clock: Arc<dyn Clock>,
    pub max_message_bytes: usize,
}

impl Limits {
    fn text_bytes(&self) -> usize {
        self.max_message_bytes.saturating_mul(TEXT_FACTOR)
    }
}

/// A value, and the room that it has.
pub struct Counted {
    pub json: Bytes,
    _held: Option<Held>,
}

/// Why there is no further value.
pub enum Failed {
    /// What the client is to learn.
    Refused(Status),
    /// The client has gone.
    Gone,
}

/// See the module.
pub struct Reader<B> {
    body: B,
    unread: unread::Body,
    limits: Arc<Limits>,
    values: Values,
    text: BytesMut,
    held: Option<Held>,
    stall: Option<(Boxed<()>, usize)>,
    ended: bool,
}

impl<B> Reader<B>
where
    B: Body<Data: Buf> + Unpin,
{
    pub fn new(body: B, limits: Arc<Limits>) -> Self {
        Self {
            body,
            unread: limits.of_connection.unread.body(),
            limits,
            values: Values::default(),
            text: BytesMut::new(),
            held: None,
            stall: None,
            ended: false,
        }
    }

    /// The next value, or what the body ends with if that is none.
    pub async fn next(&mut self) -> Result<Option<Counted>, Failed> {
        loop {
            if let Some(end) = self.values.end(&self.text) {
                return self.value(end).await.map(Some);
            }
            if self.ended {
                return match self.text.trim_ascii().len() {
                    0 => Ok(None),
                    _ => self.value(self.text.len()).await.map(Some),
                };
            }
            if self.text.len() > self.limits.text_bytes() {
                return Err(Failed::Refused(Status::resource_exhausted(format!(
                    "the JSON of a request is larger than {} bytes",
                    self.limits.text_bytes()
                ))));
            }
            match self.read().await? {
                Some(data) => {
                    self.make_room(self.text.len() + data.len()).await?;
                    self.text.extend_from_slice(&data);
                }
                None => self.ended = true,
            }
        }
    }

    /// The message of a value. Until a service takes it over it counts as unread, as all do.
    pub fn message(&self, input: &MessageDescriptor, json: &[u8]) -> Result<Bytes, Status> {
        let framed = message::framed(input, json)?;
        self.limits.of_connection.unread.came(framed.len());
        Ok(framed)
    }

    /// Takes the value that ends there.
    async fn value(&mut self, end: usize) -> Result<Counted, Failed> {
        let parsed_bytes = std::mem::take(&mut self.values.parsed_bytes);
        let cost = end.saturating_add(parsed_bytes);
        if cost > self.limits.max_message_bytes.saturating_mul(COST_FACTOR) {
            let reason = "the JSON of a request has too many parts";
            return Err(Failed::Refused(Status::resource_exhausted(reason)));
        }
        self.make_room(cost).await?;
        let json = self.text.split_to(end).freeze();
        self.stall = None;
        Ok(Counted {
            json,
            _held: self.held.take(),
        })
    }

    /// Counts so many bytes.
    async fn make_room(&mut self, needed_bytes: usize) -> Result<(), Failed> {
        let held_bytes = self.held.as_ref().map_or(0, Held::bytes);
        if needed_bytes <= FREE_BYTES.max(held_bytes) {
            return Ok(());
        }
        let announced = self.body.size_hint().exact();
        let rest = announced.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let wanted = match rest {
            Some(rest) if needed_bytes >= BEGINNING_BYTES => needed_bytes.saturating_add(rest),
            _ => FIRST_BYTES.max(2 * held_bytes),
        };
        let wanted = wanted.min(self.limits.text_bytes()).max(needed_bytes) - held_bytes;
        let waiting = self.limits.of_connection.take(wanted);
        let taken = env::timeout(self.limits.clock.as_ref(), WAIT_LIMIT, waiting).await;
        let Some(Ok(more)) = taken else {
            return Err(Failed::Refused(Error::Overloaded.into()));
        };
        match &mut self.held {
            Some(held) => held.join(more),
            none => *none = Some(more),
        }
        Ok(())
    }

    /// What comes next from the connection.
    pub async fn read(&mut self) -> Result<Option<Bytes>, Failed> {
        loop {
            let frame = match self.body.frame().now_or_never() {
                Some(frame) => frame,
                None => {
                    self.unread.drained();
                    self.await_frame().await?
                }
            };
            match frame {
                None => {
                    self.unread.drained();
                    return Ok(None);
                }
                Some(Err(_)) => return Err(Failed::Gone),
                Some(Ok(frame)) => {
                    // Trailers say nothing here.
                    if let Ok(mut data) = frame.into_data() {
                        let data = data.copy_to_bytes(data.remaining());
                        self.unread.took(data.len());
                        if let Some((_, came_bytes)) = &mut self.stall {
                            *came_bytes += data.len();
                        }
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    async fn await_frame(&mut self) -> Result<Option<Result<Frame<B::Data>, B::Error>>, Failed> {
        if self.held.is_none() {
            return Ok(self.body.frame().await);
        }
        self.unread.starves();
        loop {
            let clock = &self.limits.clock;
            let (until, came_bytes) = self
                .stall
                .get_or_insert_with(|| (clock.sleep(STALL_LIMIT), 0));
            match select(self.body.frame(), until).await {
                Either::Left((frame, _)) => return Ok(frame),
                Either::Right(_) => {
                    if *came_bytes < PROGRESS_BYTES && self.limits.of_connection.is_awaited() {
                        return Err(Failed::Refused(Error::Overloaded.into()));
                    }
                    self.stall = None;
                }
            }
        }
    }
}
