//! https without warnings: a CA of this user, for local names only, and the stores that trust it.

pub mod authority;
pub mod stores;
pub mod variables;

use std::{env, path::PathBuf};

pub use self::authority::Authority;

/// Returns the folder of the CA: `$XDG_DATA_HOME/adit/ca` or `~/.local/share/adit/ca`. `None`: there is no home folder.
pub fn folder() -> Option<PathBuf> {
    let data = env::var_os("XDG_DATA_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || Some(etcetera::home_dir().ok()?.join(".local/share"));
    Some(data.or_else(home)?.join("adit/ca"))
}
