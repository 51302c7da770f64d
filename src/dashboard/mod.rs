//! The dashboard at `http://adit.localhost:PORT`: one page with five views, and the API behind a sign-in.
//!
//! The browser also runs all other pages of the user, and pages below `localhost` come from pods. So:
//!
//! 1. Host is exactly `adit.localhost[:port]` or `localhost[:port]` (`site`).
//! 2. A single-use code becomes a cookie (`visitor`). Without the cookie, the page has no data.
//! 3. `/api/` requires the cookie, and a request from the dashboard's own page. A change also requires the dashboard's Origin,
//!    JSON, and a header that forms cannot send (`visitor`).
//! 4. Every response limits what the page may load, and forbids other pages to read or frame it ([`policy`]).
//! 5. The script inserts text as text; the server escapes it ([`crate::html`]).

pub mod assets;
mod first;
pub mod policy;
mod site;
mod visitor;

use self::assets::Assets;
use crate::admin::api::source::Source;

/// The dashboard of one process.
pub struct Dashboard {
    source: Source,
    assets: Assets,
}

impl Dashboard {
    pub fn new(source: Source, assets: Assets) -> Self {
        Self { source, assets }
    }
}
