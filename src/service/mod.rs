//! The files of a service manager for adit as a user service. This module does not change the system.

pub mod launchd;
pub mod systemd;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

/// Program of the service, its arguments and environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Absolute path of adit, then its arguments.
    pub command: Vec<String>,
    /// Environment variables of the service, including PATH, with which credential plugins are found.
    pub environment: BTreeMap<String, String>,
    /// Addresses on which the service manager listens for adit, so that they stay open during a restart.
    pub listeners: Vec<SocketAddr>,
}

/// A file of a service, with its intended content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFile {
    pub path: PathBuf,
    pub text: String,
}

/// Program of an installed service, according to its file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Empty: the file has none.
    pub program: PathBuf,
    /// Value of PATH. `None`: the file sets none, so the service manager's own applies.
    pub path: Option<String>,
}

/// Returns the text with `special` characters replaced.
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
