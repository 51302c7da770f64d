//! Whether browsers trust the certificates that adit shows.

use super::report::{Check, Group, Status};

pub fn checks() -> Vec<Check> {
    vec![Check::new(
        "local-ca",
        Group::Trust,
        Status::Skip,
        "https names in browsers (needs a CA of adit's own, which there is none of)",
    )]
}
