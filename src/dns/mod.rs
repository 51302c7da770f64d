//! Checks whether programs of this system resolve the names that adit serves, and changes that.
//!
//! Browsers and curl resolve names below `localhost` by themselves. For other programs there are three ways, by the system:
//!
//! | system | names below localhost | other names, which routes have |
//! |---|---|---|
//! | Linux with systemd-resolved | it answers for them (systemd-resolved.service(8)) | a drop-in of its configuration |
//! | other Linux with glibc | `myhostname` in `/etc/nsswitch.conf` | - |
//! | macOS | `/etc/resolver/localhost` | a file each in `/etc/resolver` |
//!
//! A drop-in and the files of macOS lead questions to the listener of adit, which answers them itself (`listener/dns.rs`).

mod files;
mod nsswitch;
mod resolved;
mod resolver;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use self::resolved::RESTART;

/// State of the system's resolver for some names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// They are resolved, by this.
    Asks(String),
    /// They are not.
    Lacks,
    /// A file cannot be changed without root.
    NeedsRoot,
    /// The library is missing: the command that installs it.
    NeedsPackage(String),
    Failed(String),
}

/// Names, and what is the case with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// `localhost`, or the name of a route: it and all below it are meant.
    pub name: String,
    pub state: State,
    /// The file that decides it.
    pub file: PathBuf,
}

/// Resolvers that a system has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Linux,
    MacOs,
}

impl Kind {
    pub fn here() -> Self {
        if cfg!(target_os = "macos") { Self::MacOs } else { Self::Linux }
    }
}

/// Change to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Look,
    Install,
    Uninstall,
}

/// The system below a root folder: `/`, but in tests.
pub struct System {
    root: PathBuf,
    kind: Kind,
    /// Port of this machine at which adit answers DNS queries.
    port: u16,
    /// The names that routes have beside those below localhost.
    names: Vec<String>,
}

impl System {
    /// `names`: others than those below localhost.
    pub fn new(root: &Path, kind: Kind, port: u16, names: Vec<String>) -> Self {
        Self { root: root.to_owned(), kind, port, names }
    }

    /// Looks, or changes what is to be changed, and returns how it is then.
    pub fn does(&self, act: Act) -> Vec<Part> {
        match self.kind {
            Kind::MacOs => resolver::parts(self, act),
            Kind::Linux => {
                let mut parts = vec![match resolved::answers(&self.root) {
                    Some(part) => part,
                    None => nsswitch::part(&self.root, act),
                }];
                parts.extend(resolved::parts(self, act));
                parts
            }
        }
    }

    /// Returns the command that has names below localhost resolved, if any does.
    pub fn command(&self) -> Option<String> {
        match self.kind {
            Kind::MacOs => Some("sudo adit dns install".to_owned()),
            Kind::Linux => nsswitch::command(&self.root),
        }
    }
}

/// Returns the state after an error with a file.
fn failed(file: &Path, error: &io::Error) -> State {
    match error.kind() {
        io::ErrorKind::PermissionDenied => State::NeedsRoot,
        io::ErrorKind::NotFound => State::Failed(format!("this system has no {}", file.display())),
        _ => State::Failed(format!("{}: {error}", file.display())),
    }
}
