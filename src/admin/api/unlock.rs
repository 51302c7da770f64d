//! `POST /api/v1/contexts/NAME/unlock`: lifts the rules of a context for a while. Only on the Unix socket: the rules protect from
//! pages, so a page must not lift them.

use std::time::Duration;

use http::{Response, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{FORMAT, failure, json};
use crate::{
    admin::{api::source::Source, http::Body},
    guard::locks::LONGEST,
};

/// Request to unlock a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UnlockRequest {
    /// Duration, at most 28,800. 0 locks the context again.
    pub seconds: u64,
}

/// An unlocked context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UnlockAnswer {
    #[schemars(range(min = 1, max = 1))]
    pub format: u32,
    pub context: String,
    /// Duration for which its rules are lifted.
    pub seconds: u64,
}

/// Answers the request. `name`: an alias, or the name of a context.
pub fn answer(source: &Source, name: &str, wanted: &[u8]) -> Response<Body> {
    let wanted: UnlockRequest = match serde_json::from_slice(wanted) {
        Ok(wanted) => wanted,
        Err(error) => {
            let message = format!("the body is not the expected JSON: {error}");
            return failure(StatusCode::BAD_REQUEST, "malformed", message);
        }
    };
    let router = source.router();
    let aliases = &router.config.contexts;
    let context = aliases.get(name).map_or(name, |alias| alias.name.as_str());
    let rules = aliases.values().filter(|alias| alias.name.as_str() == context && alias.methods.is_some());
    if rules.count() == 0 {
        let known: Vec<&str> =
            aliases.iter().filter(|(_, alias)| alias.methods.is_some()).map(|(name, _)| name.as_str()).collect();
        let message = match known.as_slice() {
            [] => "no context is locked: none has methods in the configuration".to_owned(),
            known => format!("context {name:?} is not locked; those with methods are {}", known.join(", ")),
        };
        return failure(StatusCode::NOT_FOUND, "not-locked", message);
    }
    let time = Duration::from_secs(wanted.seconds).min(LONGEST);
    source.locks().unlock(context, time);
    warn!(context, ?time, "a context was unlocked by hand");
    json(&UnlockAnswer { format: FORMAT, context: context.to_owned(), seconds: time.as_secs() })
}
