//! What a name means: from a hostname or a local port to a [`Route`]. Pure.

pub mod hostname;
pub mod router;
pub mod table;
pub mod target;

pub use router::{RouteError, Router, SharedRouter};
pub use target::{ClusterId, Contexts, PodTarget, Target};

use std::{sync::Arc, time::Duration};

use crate::config::HttpOptions;

/// Where a connection goes, and how it is treated on the way.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// The route as the user knows it: its key in the file, or the dynamic name.
    pub name: Arc<str>,
    pub target: Target,
    /// Zero: never.
    pub idle_timeout: Duration,
    /// How requests are treated; the default for TCP.
    pub options: Arc<HttpOptions>,
}
