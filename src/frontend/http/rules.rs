//! Rules for requests to a context: those of the configuration, unless `adit unlock` has lifted them.

use http::{Request, StatusCode};

use super::{HttpFrontend, body::Body, error_page::Page, upgrade};
use crate::{
    error_code::ErrorCode,
    frontend::read_only::{ReadOnly, Unlocked},
    journal::exchange::ReplayOf,
    routing::Route,
};

impl HttpFrontend {
    /// Returns the guard that ends a connection of a route once its context is locked again.
    pub fn unlocked(&self, route: &Route) -> Unlocked {
        Unlocked::of(self.locks.clone(), self.sites.read_only(route))
    }

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
        let Some(rule) = self.rule(route) else { return Ok(()) };
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
