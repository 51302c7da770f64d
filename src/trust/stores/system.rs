//! The system's store of a Linux distribution: a folder, and the command that takes up what is in it. It needs root, so adit prints
//! what to do and never does it.

use std::{fs, path::PathBuf};

use super::{Places, State, Store};
use crate::trust::Authority;

/// The folders of distributions, with the extension of their files and their commands, the most specific first.
const KINDS: [(&str, &str, &[&str]); 4] = [
    ("usr/local/share/ca-certificates", "crt", &["update-ca-certificates"]),
    ("etc/pki/ca-trust/source/anchors", "pem", &["update-ca-trust", "extract"]),
    ("etc/ca-certificates/trust-source/anchors", "pem", &["trust", "extract-compat"]),
    ("usr/share/pki/trust/anchors", "pem", &["update-ca-certificates"]),
];

struct Kind {
    folder: PathBuf,
    extension: &'static str,
    command: &'static [&'static str],
}

pub struct System {
    /// None: this distribution is not known.
    kind: Option<Kind>,
}

impl System {
    pub fn new(places: &Places) -> Self {
        let all = KINDS.iter().map(|(folder, extension, command)| Kind {
            folder: places.root.join(folder),
            extension,
            command,
        });
        Self { kind: all.into_iter().find(|kind| kind.folder.is_dir()) }
    }
}

impl Kind {
    fn file(&self, authority: &Authority) -> PathBuf {
        self.folder.join(format!("adit-{}.{}", &authority.fingerprint()[..16], self.extension))
    }
}

fn unknown() -> State {
    let why = "this distribution's folder for CA certificates is not known; on NixOS set security.pki.certificateFiles";
    State::Failed(why.to_owned())
}

impl Store for System {
    fn name(&self) -> String {
        match &self.kind {
            Some(kind) => format!("the system ({})", kind.folder.display()),
            None => "the system".to_owned(),
        }
    }

    fn look(&self, authority: &Authority) -> State {
        let Some(kind) = &self.kind else { return unknown() };
        match (fs::read(kind.file(authority)), fs::read(authority.file())) {
            (Ok(there), Ok(ours)) if there == ours => State::Trusts,
            _ => {
                let (ours, file, command) = (authority.file(), kind.file(authority), kind.command.join(" "));
                State::NeedsRoot(format!("sudo cp {} {} && sudo {command}", ours.display(), file.display()))
            }
        }
    }

    fn add(&self, authority: &Authority) -> State {
        self.look(authority)
    }

    fn remove(&self, authority: &Authority) -> State {
        let Some(kind) = &self.kind else { return State::Lacks };
        let file = kind.file(authority);
        if !file.exists() {
            return State::Lacks;
        }
        State::NeedsRoot(format!("sudo rm {} && sudo {}", file.display(), kind.command.join(" ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_said_and_nothing_is_changed() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("etc/pki/ca-trust/source/anchors");
        let authority = Authority::create(&home.path().join("ca"), "ana at laptop", &[]).unwrap();
        let path = home.path().to_owned();
        let places = Places {
            home: path.clone(),
            root: path.clone(),
            kept: path.join("kept"),
            ours: path.join("ca"),
            java: None,
        };
        assert!(matches!(System::new(&places).add(&authority), State::Failed(why) if why.contains("NixOS")));
        fs::create_dir_all(&folder).unwrap();
        let system = System::new(&places);
        assert_eq!(system.look(&authority), system.add(&authority), "a look says what is to be done too");
        let State::NeedsRoot(command) = system.add(&authority) else { panic!("it has to be said") };
        assert!(command.starts_with("sudo cp ") && command.ends_with("&& sudo update-ca-trust extract"), "{command}");
        assert_eq!(system.remove(&authority), State::Lacks);
        fs::copy(authority.file(), system.kind.as_ref().unwrap().file(&authority)).unwrap();
        assert_eq!((system.look(&authority), system.add(&authority)), (State::Trusts, State::Trusts));
        assert!(matches!(system.remove(&authority), State::NeedsRoot(command) if command.starts_with("sudo rm ")));
    }
}
