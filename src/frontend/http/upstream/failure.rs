//! Why a request has no answer.

use std::{error::Error, io};

use rustls::AlertDescription;

use crate::{
    config::Scheme,
    tunnel::{OpenError, StreamFault},
    wire::{
        database::Database,
        sniff::{Protocol, Sniff, sniff_server},
    },
};

/// Error of a request without a response.
pub enum RequestError {
    Open(OpenError),
    /// The stream to the pod broke.
    Stream(StreamFault),
    /// A PEM file of the route cannot be used.
    TlsFile(io::Error),
    Tls(io::Error),
    /// With the backend's first bytes on the connection, unless they are known to be HTTP.
    Http1(hyper::Error, Vec<u8>),
    Http2(h2::Error),
    /// The backend did not begin with HTTP/2.
    NotHttp2,
    /// The backend speaks only HTTP/2, and the request asks to switch the protocol, which adit does over HTTP/1.1.
    OnlyHttp2,
    /// The Service declares the port as one of a database.
    Database(Database),
    /// The backend speaks another protocol. `is_fixed`: the route sets the protocol; otherwise the request cannot be retried.
    WrongScheme {
        spoke: Scheme,
        speaks: Scheme,
        is_fixed: bool,
    },
    /// The client's body broke, and why.
    Client(String),
}

impl RequestError {
    /// Returns whether the backend requires HTTP/1.1 for the request (RFC 9113, section 7).
    pub fn requires_http1(&self) -> bool {
        let required = Some(h2::Reason::HTTP_1_1_REQUIRED);
        matches!(self, Self::Http2(error) if error.is_remote() && error.reason() == required)
    }

    /// Returns the error of a request over HTTP/1.1 alone: the backend may have answered in HTTP/2, or refused the protocol in
    /// the TLS handshake (RFC 7301, section 3.2).
    pub fn over_http1_alone(self) -> Self {
        let is_http2 = match &self {
            Self::Http1(_, said) => sniff_server(said) == Sniff::Is(Protocol::Http2),
            Self::Tls(_) => self.alert() == Some(AlertDescription::NoApplicationProtocol),
            _ => false,
        };
        if is_http2 { Self::OnlyHttp2 } else { self }
    }

    /// Returns the error code with which the backend has reset the request.
    pub fn reset(&self) -> Option<h2::Reason> {
        match self {
            Self::Http2(error) if error.is_remote() && error.is_reset() => error.reason(),
            _ => None,
        }
    }

    /// Returns how the stream to the pod broke. `None`: it did not.
    pub fn fault(&self) -> Option<&StreamFault> {
        match self {
            Self::Stream(fault) => Some(fault),
            _ => self.io().find_map(StreamFault::of),
        }
    }

    /// Returns the TLS alert of the backend: in the handshake, or in TLS 1.3 after it, about the client's certificate (RFC 8446,
    /// section 6). `None`: it sent none.
    pub fn alert(&self) -> Option<AlertDescription> {
        self.io().find_map(|error| match error.get_ref()?.downcast_ref()? {
            rustls::Error::AlertReceived(alert) => Some(*alert),
            _ => None,
        })
    }

    /// Returns the errors of the connection among the causes.
    fn io(&self) -> impl Iterator<Item = &io::Error> {
        let first: Option<&(dyn Error + 'static)> = match self {
            Self::Open(_) | Self::Stream(_) | Self::TlsFile(_) | Self::Client(_) | Self::WrongScheme { .. } => None,
            Self::NotHttp2 | Self::OnlyHttp2 | Self::Database(_) => None,
            Self::Tls(error) => Some(error),
            Self::Http1(error, _) => Some(error),
            Self::Http2(error) => error.get_io().map(|error| error as _),
        };
        std::iter::successors(first, |error: &&(dyn Error + 'static)| Error::source(*error))
            .filter_map(|error| error.downcast_ref())
    }
}
