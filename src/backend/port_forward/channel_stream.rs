//! A forwarded connection in a WebSocket of its own, with the channels of `v4.channel.k8s.io`: where a gateway lets nothing
//! else through. Channel 0 carries data, 1 the error text; each begins with the port (16 bits, little endian). It has
//! no half-close.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::io::poll_read_buf;

use super::{
    connection::{LONGEST_REPORT, classify},
    stream::{HOLD_ANSWERED, HOLD_UNANSWERED, HOLD_UNUSED},
};
use crate::{
    io::BoxedIo,
    k8s::upgrade::websocket::Masks,
    wire::websocket::{Event, Opcode, Parser, Role, put_frame},
};

const DATA: u8 = 0;
const ERROR: u8 = 1;

/// How much is read from the connection at a time, and how much a write takes.
const PIECE: usize = 64 * 1024;

/// A write waits while this much is on its way out.
const MOST_UNSENT: usize = 256 * 1024;

pub struct ChannelStream {
    inner: BoxedIo,
    port: u16,
    parser: Parser,
    received: BytesMut,
    /// Of the message that is being read; None: its first byte has not come.
    channel: Option<u8>,
    /// How many bytes of the port each channel begins with have not come.
    port_left: [usize; 2],
    /// The rest of a piece of data that did not fit into the reader's buffer.
    payload: Bytes,
    report: Vec<u8>,
    unsent: BytesMut,
    masks: Masks,
    ended: bool,
    shut_down: Option<Instant>,
    last_read: Option<Instant>,
    last_written: Option<Instant>,
    hold: Option<Pin<Box<Sleep>>>,
    close_sent: bool,
    _count: Arc<()>,
}

impl ChannelStream {
    /// `inner`: after the upgrade, forwarding `port`. `count` is held as long as the stream.
    pub fn new(inner: BoxedIo, port: u16, count: Arc<()>) -> Self {
        Self {
            inner,
            port,
            parser: Parser::new(Role::Client),
            received: BytesMut::new(),
            channel: None,
            port_left: [2; 2],
            payload: Bytes::new(),
            report: Vec::new(),
            unsent: BytesMut::new(),
            masks: Masks::new(),
            ended: false,
            shut_down: None,
            last_read: None,
            last_written: None,
            hold: None,
            close_sent: false,
            _count: count,
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let count = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.unsent))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(count);
        }
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    /// Takes a piece of a message.
    fn take(&mut self, mut payload: Bytes, last: bool) {
        let channel = match self.channel {
            Some(channel) => channel,
            None if payload.is_empty() => return,
            None => payload.split_to(1)[0],
        };
        self.channel = (!last).then_some(channel);
        if let Some(left) = self.port_left.get_mut(usize::from(channel)) {
            let skipped = payload.len().min(*left);
            payload.advance(skipped);
            *left -= skipped;
        }
        match channel {
            DATA => self.payload = payload,
            ERROR => {
                let room = LONGEST_REPORT - self.report.len();
                self.report.extend_from_slice(&payload[..payload.len().min(room)]);
            }
            _ => {}
        }
    }

    /// Closes the WebSocket once the client has ended and the pod has been silent for long enough.
    fn poll_hold(&mut self, cx: &mut Context<'_>) {
        let Some(shut_down) = self.shut_down.filter(|_| !self.close_sent) else { return };
        let quiet = match (self.last_written, self.last_read) {
            (None, _) => HOLD_UNUSED,
            (Some(written), Some(read)) if read >= written => HOLD_ANSWERED,
            (Some(_), _) => HOLD_UNANSWERED,
        };
        let deadline = self.last_read.map_or(shut_down, |at| at.max(shut_down)) + quiet;
        let hold = self.hold.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if hold.deadline() != deadline {
            hold.as_mut().reset(deadline);
        }
        if hold.as_mut().poll(cx).is_ready() {
            self.close_sent = true;
            let mask = self.masks.next();
            put_frame(&mut self.unsent, Opcode::Close, &1000u16.to_be_bytes(), Some(mask));
            // An error shows in the read that follows.
            let _ = self.poll_send(cx);
        }
    }
}

impl AsyncRead for ChannelStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.payload.is_empty() {
                let count = this.payload.len().min(buf.remaining());
                buf.put_slice(&this.payload.split_to(count));
                this.last_read = Some(Instant::now());
                return Poll::Ready(Ok(()));
            }
            if this.ended {
                return Poll::Ready(match this.report.is_empty() {
                    true => Ok(()),
                    false => Err(classify(&String::from_utf8_lossy(&this.report), this.port).into()),
                });
            }
            match this.parser.next(&mut this.received) {
                Ok(Some(Event::Data { payload, last })) => this.take(payload, last),
                Ok(Some(Event::Ping(payload))) => {
                    let mask = this.masks.next();
                    put_frame(&mut this.unsent, Opcode::Pong, &payload, Some(mask));
                    // The answer leaves now or with the next write; an error shows there as well.
                    let _ = this.poll_send(cx);
                }
                Ok(Some(Event::Pong)) => {}
                Ok(Some(Event::Close(_))) => this.ended = true,
                Ok(None) => {
                    this.received.reserve(PIECE);
                    match poll_read_buf(Pin::new(&mut this.inner), cx, &mut this.received)? {
                        Poll::Ready(0) => this.ended = true,
                        Poll::Ready(_) => {}
                        Poll::Pending => {
                            this.poll_hold(cx);
                            return Poll::Pending;
                        }
                    }
                }
                Err(error) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error))),
            }
        }
    }
}

impl AsyncWrite for ChannelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.shut_down.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.unsent.len() > MOST_UNSENT {
            ready!(self.poll_send(cx))?;
        }
        let piece = &buf[..buf.len().min(PIECE)];
        let mut message = BytesMut::with_capacity(1 + piece.len());
        message.extend_from_slice(&[DATA]);
        message.extend_from_slice(piece);
        let mask = self.masks.next();
        put_frame(&mut self.unsent, Opcode::Binary, &message, Some(mask));
        self.last_written = Some(Instant::now());
        if let Poll::Ready(Err(error)) = self.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        self.shut_down.get_or_insert_with(Instant::now);
        // A reader that waits already has to set the timer, in this task or in another.
        self.poll_hold(cx);
        Poll::Ready(Ok(()))
    }
}
