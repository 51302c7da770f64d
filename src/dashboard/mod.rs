//! The dashboard at `http://adit.localhost:PORT`: one page with five views, and the API behind a sign-in.
//!
//! The page runs in a browser beside every other page of the user, and pages below `localhost` are served by pods. So:
//!
//! 1. Host is exactly `adit.localhost[:port]` or `localhost[:port]` ([`site`]).
//! 2. A code that is good once becomes a cookie ([`visitor`]); without it there is a page without data.
//! 3. `/api/` wants the cookie, and a request that our own page made; what changes something also wants our Origin, JSON, and a header
//!    that no form can send ([`visitor`]).
//! 4. Every answer says what the page may load, and that nobody else may read or frame it ([`policy`]).
//! 5. The script writes text as text; the server escapes it ([`crate::html`]).

pub mod assets;
mod first;
pub mod policy;
mod site;
mod visitor;

use self::assets::Assets;
use crate::admin::status::Source;

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
