//! adit as a service of the user: the files that a service manager reads. Nothing here touches the system.

pub mod launchd;
pub mod systemd;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

/// Program of the service, its arguments and environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The absolute path of adit, and its arguments.
    pub command: Vec<String>,
    /// Variables of the service's environment. PATH is among them: credential plugins are found with it.
    pub environment: BTreeMap<String, String>,
    /// Addresses that the service manager listens on for adit, so that they outlive a restart.
    pub listeners: Vec<SocketAddr>,
}

/// A file of a service, as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFile {
    pub path: PathBuf,
    pub text: String,
}

/// Program that an installed service starts, as its file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Empty: the file names none.
    pub program: PathBuf,
    /// The value of PATH. None: the service manager's own.
    pub path: Option<String>,
}

/// Returns values as they have to be where `special` characters mean something else.
fn escaped(text: &str, special: &[(char, &str)]) -> String {
    let mut escaped = String::with_capacity(text.len());
    for each in text.chars() {
        match special.iter().find(|(character, _)| *character == each) {
            Some((_, instead)) => escaped += instead,
            None => escaped.push(each),
        }
    }
    escaped
}
