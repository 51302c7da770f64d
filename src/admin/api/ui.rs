//! `POST /api/v1/ui`: a link that opens the dashboard once. The Unix socket only.

use http::{Response, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FORMAT, failure, json};
use crate::{
    admin::{api::source::Source, http::Body},
    config::DASHBOARD_HOST,
};

/// A link into the dashboard.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct UiAnswer {
    #[schemars(range(min = 1, max = 1))]
    pub format: u32,
    /// It signs a browser in once, within 60 s.
    pub url: String,
}

/// Answers the request.
pub fn answer(source: &Source) -> Response<Body> {
    let is_on = source.router().config.dashboard;
    let Some(keys) = source.keys().filter(|_| is_on) else {
        return failure(StatusCode::NOT_FOUND, "dashboard-off", "the dashboard is off (dashboard: off)".to_owned());
    };
    let port = source.facts().port();
    match keys.issue() {
        Ok(code) => json(&UiAnswer { format: FORMAT, url: format!("http://{DASHBOARD_HOST}:{port}/in?code={code}") }),
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string()),
    }
}
