//! One log line per request, when its answer has ended; the tunnel is in use until then.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;
use tower::BoxError;
use tracing::info;

use super::{body::Body, upstream::pool::Returning};
use crate::{guard::normaliser::Busy, metrics::Metrics, tunnel::Lease};

/// What the line says. Written on drop.
pub struct Access {
    connection: u64,
    method: Method,
    /// Without the query, which may hold secrets.
    path: String,
    started: Instant,
    first_byte: Option<Duration>,
    bytes: u64,
    metrics: Arc<Metrics>,
    is_taken: bool,
    pub host: String,
    pub route: Option<Arc<str>>,
    pub status: StatusCode,
    pub error: Option<&'static str>,
}

impl Access {
    pub fn start<B>(request: &Request<B>, connection: u64, metrics: Arc<Metrics>) -> Self {
        Self {
            connection,
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            started: Instant::now(),
            first_byte: None,
            bytes: 0,
            metrics,
            is_taken: false,
            host: String::new(),
            route: None,
            // What is written for a client that went away before there was an answer (nginx's 499).
            status: StatusCode::from_u16(499).expect("a status of three digits"),
            error: None,
        }
    }

    /// Takes note that the backend answers.
    pub fn answered(&mut self, status: StatusCode) {
        (self.status, self.first_byte) = (status, Some(self.started.elapsed()));
    }

    /// Returns the line, to be written by the new owner.
    pub fn take(&mut self) -> Self {
        self.is_taken = true;
        Self {
            method: self.method.clone(),
            path: std::mem::take(&mut self.path),
            host: std::mem::take(&mut self.host),
            route: self.route.take(),
            metrics: self.metrics.clone(),
            is_taken: false,
            ..*self
        }
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        if !self.is_taken {
            self.metrics.request(self.route.as_ref(), self.status.as_u16(), self.first_byte);
            info!(
                target: "adit::access",
                connection = self.connection,
                method = %self.method,
                host = self.host,
                path = self.path,
                route = self.route.as_deref(),
                status = self.status.as_u16(),
                error = self.error,
                bytes = self.bytes,
                took = ?self.started.elapsed(),
                "request"
            );
        }
    }
}

/// A response's body that holds the lease and the connection, and writes the line, until it has ended.
pub struct Tracked {
    inner: Body,
    lease: Option<Lease>,
    returning: Option<Returning>,
    access: Option<Access>,
    busy: Option<Busy>,
}

impl Tracked {
    pub fn new(inner: Body, access: Access) -> Self {
        Self { inner, lease: None, returning: None, access: Some(access), busy: None }
    }

    /// Keeps the client's connection busy until the body has ended.
    pub fn keeping(mut self, busy: Option<Busy>) -> Self {
        self.busy = busy;
        self
    }

    /// Keeps the lease until the body has ended, and then gives the connection back.
    pub fn holding(mut self, lease: Lease, returning: Option<Returning>) -> Self {
        (self.lease, self.returning) = (Some(lease), returning);
        self
    }
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.inner).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(access), Some(data)) = (&mut this.access, frame.data_ref()) {
                    access.bytes += data.len() as u64;
                }
            }
            Poll::Ready(None) => {
                this.returning = None;
                this.lease = None;
                this.access = None;
                this.busy = None;
            }
            Poll::Ready(Some(Err(error))) => {
                if let (Some(lease), Some(access)) = (&this.lease, &mut this.access) {
                    lease.note_error(error);
                    access.error = Some("broken");
                }
            }
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
