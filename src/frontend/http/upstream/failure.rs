//! Why a request has no answer.

use std::{error::Error, io};

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
        let refused = rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol);
        let is_http2 = match &self {
            Self::Http1(_, said) => sniff_server(said) == Sniff::Is(Protocol::Http2),
            Self::Tls(error) => error.get_ref().and_then(|error| error.downcast_ref()) == Some(&refused),
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
        let mut source: Option<&(dyn Error + 'static)> = match self {
            Self::Stream(fault) => return Some(fault),
            Self::Open(_) | Self::TlsFile(_) | Self::Client(_) | Self::WrongScheme { .. } => None,
            Self::NotHttp2 | Self::OnlyHttp2 | Self::Database(_) => None,
            Self::Tls(error) => Some(error),
            Self::Http1(error, _) => Some(error),
            Self::Http2(error) => error.get_io().map(|error| error as _),
        };
        while let Some(error) = source {
            if let Some(fault) = error.downcast_ref::<io::Error>().and_then(StreamFault::of) {
                return Some(fault);
            }
            source = error.source();
        }
        None
    }
}
