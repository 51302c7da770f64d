//! Routing: from a hostname or a local port to a [`Route`]. No I/O.

pub mod alias;
pub mod cluster_name;
pub mod hostname;
pub mod named;
pub mod port_protocol;
pub mod route;
pub mod router;
pub mod table;
pub mod target;

pub use named::{Named, NamedError};
pub use port_protocol::PortProtocol;
pub use route::Route;
pub use router::{RouteError, Router, SharedRouter};
pub use target::{ClusterId, Contexts, PodTarget, Target};
