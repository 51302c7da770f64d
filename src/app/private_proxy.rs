//! A forward proxy for one command: on its own port, with a password, and also to hosts outside the cluster.

use std::{io, net::Ipv4Addr, sync::Arc};

use arc_swap::ArcSwap;
use data_encoding::HEXLOWER;

use super::{BindError, forwards::Forwards, mux};
use crate::{
    config::{Elsewhere, ForwardProxy},
    frontend::door::{CURRENT, Door, Password},
    metrics::Metrics,
    random,
    routing::{Router, SharedRouter},
};

/// A forward proxy on its own port. It serves until the [`Forwards`] end.
pub struct PrivateProxy {
    address: std::net::SocketAddr,
    password: String,
}

/// Error of a private proxy that could not start.
#[derive(Debug, thiserror::Error)]
pub enum PrivateProxyError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("the system gives no random numbers: {0}")]
    Random(io::Error),
}

impl PrivateProxy {
    /// Serves the names of `router` at a free port on loopback.
    ///
    /// # Errors
    /// No port is free, or the system has no random numbers.
    pub fn serve(forwards: &Forwards, router: &Router) -> Result<Self, PrivateProxyError> {
        let mut config = (*router.config).clone();
        let proxy = config.proxy.take().unwrap_or_default();
        config.proxy = Some(ForwardProxy { elsewhere: Elsewhere::Direct, listen: Vec::new(), ..proxy });
        let router: SharedRouter =
            Arc::new(ArcSwap::from_pointee(Router { config: Arc::new(config), ..router.clone() }));
        let password = password().map_err(PrivateProxyError::Random)?;
        let (listener, address) = forwards.bind((Ipv4Addr::LOCALHOST, 0).into(), "--proxy")?;
        let (tunnels, drain) = (forwards.tunnels(), forwards.drain().clone());
        let (mux, ..) = mux(&router, tunnels, &Arc::<Metrics>::default(), &drain).map_err(PrivateProxyError::Random)?;
        let (mux, door) = (Arc::new(mux), Door::Private(Password::new(&password)));
        forwards.accept(listener, door, move |stream, connection| {
            let (mux, drain) = (mux.clone(), drain.clone());
            async move { mux.serve(stream, connection, drain).await }
        });
        Ok(Self { address, password })
    }

    /// Returns the URL with the password. `scheme`: `http` or `socks5h`.
    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{CURRENT}:{}@{}", self.password, self.address)
    }
}

/// Returns 128 random bits in hexadecimal.
fn password() -> io::Result<String> {
    Ok(HEXLOWER.encode(&random::bytes::<16>()?))
}
