//! Rules for requests to a context: those of the configuration, unless `adit unlock` has lifted them.

use http::{Method, Request, StatusCode};

use super::{HttpFrontend, body::Body, error_page::Page, upgrade};
use crate::{
    config::{Config, ContextName},
    error_code::ErrorCode,
    journal::exchange::ReplayOf,
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

impl HttpFrontend {
    /// Returns whether the context of a route accepts only some methods at the moment.
    pub fn has_rules(&self, route: &Route) -> bool {
        self.rule(route).is_some()
    }

    /// Returns the rule for a route at the moment. `None`: its context accepts every method, and all other protocols.
    pub fn rule(&self, route: &Route) -> Option<ReadOnly> {
        self.sites.read_only(route).filter(|rule| self.locks.time_left(&rule.context).is_none())
    }

    /// Checks that a request may go to the context of its route.
    ///
    /// # Errors
    /// The context does not accept it.
    pub(super) fn check_rules(&self, request: &Request<Body>, route: &Route) -> Result<(), Page> {
        let Some(rule) = self.sites.read_only(route) else { return Ok(()) };
        if self.locks.time_left(&rule.context).is_some() {
            return Ok(());
        }
        // After a switch, the client can write anything, whatever the method of its request was.
        let asked = upgrade::asked_protocol(request)
            .map(|(protocol, _)| format!("a switch to {}", protocol.to_str().unwrap_or("another protocol")));
        let is_method_taken = rule.methods.contains(request.method());
        let what = match asked {
            Some(asked) => asked,
            None if is_method_taken => return Ok(()),
            None => request.method().to_string(),
        };
        Err(Page {
            cause: Some(format!("the request is {what}, and contexts.{}.methods does not have it", rule.alias)),
            hint: Some(rule.unlock()),
            ..Page::new(StatusCode::FORBIDDEN, ErrorCode::ReadOnly, rule.title())
        })
    }
}

/// Checks that a replayed request goes to the target of the original one.
///
/// # Errors
/// Its name has another target by now.
pub fn check_replay(request: &Request<Body>, route: &Route) -> Result<(), Page> {
    let Some(replay) = request.extensions().get::<ReplayOf>() else { return Ok(()) };
    let target = route.target.to_string();
    if *replay.target == *target {
        return Ok(());
    }
    let title = format!("{} routes to {target} now", route.name);
    let cause = Some(format!("the request that is to be sent again went to {}", replay.target));
    Err(Page { cause, ..Page::new(StatusCode::CONFLICT, ErrorCode::Moved, title) })
}
