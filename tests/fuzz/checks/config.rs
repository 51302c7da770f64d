use std::path::Path;

use adit::config::validate;

/// Panics where `data` breaks what the configuration promises: a configuration, or at least one problem with its text.
pub fn check(data: &[u8]) {
    if let Err(error) = validate::parse(Path::new("fuzz.yaml"), data) {
        assert!(!error.problems.is_empty());
        assert!(!error.to_string().is_empty() && !error.snippets(false).is_empty());
    }
}
