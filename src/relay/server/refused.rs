//! Errors for a tunnel that is not opened, and for a visitor that is refused.

use std::io;

use super::quotas::UsedUp;
use crate::relay::{
    expose::{ClaimError, RequestError},
    ports::PortError,
    reservations::Reserved,
};

/// Reasons why a tunnel is not opened. The client gets them as text.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error(transparent)]
    UsedUp(#[from] UsedUp),
    #[error("the tunnel is being opened already")]
    Opening,
    #[error("the client closed it before it was open")]
    Closed,
    #[error("the client is gone")]
    ClientGone,
    #[error(transparent)]
    Port(#[from] PortError),
    #[error("{0:?} is not a host")]
    Host(String),
    #[error("this relay has no domain for names")]
    NoDomain,
    #[error("{0:?} cannot be a part of a hostname")]
    NoLabel(String),
    #[error("the key may not have the name {0}")]
    NameNotAllowed(String),
    #[error(transparent)]
    Reserved(#[from] Reserved),
    #[error("the name \"{0}\" is in use")]
    NameInUse(String),
    #[error("this relay takes over no Services: it was started without --register")]
    NoServices,
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The system returned no random numbers.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reasons why a visitor gets no stream to the client of a tunnel.
#[derive(Debug, thiserror::Error)]
pub enum VisitorError {
    #[error(transparent)]
    UsedUp(#[from] UsedUp),
    #[error("the client is gone")]
    ClientGone,
    #[error("the client does not keep up")]
    Slow,
    #[error("the client opened no connection for the visitor in time")]
    Absent,
    /// Reason from the client: its service is down.
    #[error("{0}")]
    Declined(String),
    /// The system returned no random numbers.
    #[error(transparent)]
    Io(#[from] io::Error),
}
