//! The rule of a context that accepts only some HTTP methods, and no other protocol.

use std::{io, sync::Arc};

use http::Method;
use tracing::info;

use crate::{
    config::{Config, ContextName},
    guard::locks::Locks,
    routing::Route,
};

/// Methods that a context accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadOnly {
    pub context: ContextName,
    /// Name of the context on the command line.
    pub alias: String,
    pub methods: Vec<Method>,
}

impl ReadOnly {
    /// Returns the rule for a route. `None`: its context accepts every method. If several aliases name the context, all their
    /// rules apply.
    pub fn of(config: &Config, route: &Route) -> Option<Self> {
        let context = &route.target.pods()?.cluster.context;
        let rules = config.contexts.iter().filter(|(_, alias)| alias.name == *context);
        let mut rules = rules.filter_map(|(name, alias)| Some((name, alias.methods.as_ref()?)));
        let (alias, methods) = rules.next()?;
        let mut methods = methods.clone();
        for (_, more) in rules {
            methods.retain(|method| more.contains(method));
        }
        Some(Self { context: context.clone(), alias: alias.clone(), methods })
    }

    /// Returns the rule for a route, unless `adit unlock` has lifted it.
    pub fn in_force(config: &Config, route: &Route, locks: &Locks) -> Option<Self> {
        Self::of(config, route).filter(|rule| locks.time_left(&rule.context).is_none())
    }

    /// Returns the command that lifts the rules for a while.
    pub fn unlock(&self) -> String {
        format!("adit unlock {} --for 15m", self.alias)
    }

    /// Returns the rule as a sentence.
    pub fn title(&self) -> String {
        let methods: Vec<&str> = self.methods.iter().map(Method::as_str).collect();
        format!("context {} allows only {}", self.context, methods.join(", "))
    }
}

/// Ends a connection whose bytes adit does not check, once the context of its route is locked again. The default: no rules, so that it
/// never ends the connection.
#[derive(Clone, Default)]
pub struct Unlocked(Option<(Arc<Locks>, ContextName)>);

impl Unlocked {
    /// `rule`: that of the route, whether it is lifted or not.
    pub fn of(locks: Arc<Locks>, rule: Option<ReadOnly>) -> Self {
        Self(rule.map(|rule| (locks, rule.context)))
    }

    /// Waits until the context is locked again, and returns the error that ends the connection. Forever, if there are no rules.
    pub async fn over(&self) -> io::Error {
        let Some((locks, context)) = &self.0 else { return std::future::pending().await };
        locks.locked(context).await;
        info!(%context, hint = "'adit unlock' lets new connections through", "connection closed: its context is locked again");
        io::Error::new(io::ErrorKind::ConnectionAborted, format!("context {context} is locked again"))
    }
}
