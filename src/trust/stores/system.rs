//! The system's store of a Linux distribution: a folder, and a command that reads it into the bundle. Both need root, so adit
//! only prints what to do.

use std::path::PathBuf;

use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{Places, State, Store};
use crate::{config::shell::quoted, trust::authority::Root};

/// Folders of distributions, with the extension of their files and their commands; the most specific first.
const KINDS: [(&str, &str, &[&str]); 4] = [
    ("usr/local/share/ca-certificates", "crt", &["update-ca-certificates"]),
    ("etc/pki/ca-trust/source/anchors", "pem", &["update-ca-trust", "extract"]),
    ("etc/ca-certificates/trust-source/anchors", "pem", &["trust", "extract-compat"]),
    ("usr/share/pki/trust/anchors", "pem", &["update-ca-certificates"]),
];

/// Bundles that the commands write, by distribution. Programs read the bundle, not the folder.
const BUNDLES: [&str; 3] = [
    "etc/ssl/certs/ca-certificates.crt",
    "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "var/lib/ca-certificates/ca-bundle.pem",
];

struct Kind {
    folder: PathBuf,
    extension: &'static str,
    command: &'static [&'static str],
    /// `None`: adit knows no bundle, so the folder decides.
    bundle: Option<PathBuf>,
}

pub struct System {
    /// `None`: adit does not know this distribution.
    kind: Option<Kind>,
}

impl System {
    pub fn new(places: &Places) -> Self {
        let all = KINDS.iter().map(|(folder, extension, command)| Kind {
            folder: places.root.join(folder),
            extension,
            command,
            bundle: BUNDLES.iter().map(|bundle| places.root.join(bundle)).find(|bundle| bundle.is_file()),
        });
        Self { kind: all.into_iter().find(|kind| kind.folder.is_dir()) }
    }
}

impl Kind {
    fn file(&self, root: &Root) -> PathBuf {
        self.folder.join(format!("adit-{}.{}", root.short(), self.extension))
    }

    fn has_file(&self, root: &Root) -> bool {
        CertificateDer::from_pem_file(self.file(root)).is_ok_and(|there| there == *root.certificate())
    }

    /// Returns whether the bundle contains it. `None`: there is no readable bundle.
    fn has_taken(&self, root: &Root) -> Option<bool> {
        let mut all = CertificateDer::pem_file_iter(self.bundle.as_ref()?).ok()?;
        Some(all.any(|certificate| certificate.is_ok_and(|certificate| certificate == *root.certificate())))
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

    fn look(&self, root: &Root) -> State {
        let Some(kind) = &self.kind else { return unknown() };
        let command = kind.command.join(" ");
        match (kind.has_file(root), kind.has_taken(root)) {
            // Programs read the bundle. The file may be readable by root alone.
            (_, Some(true)) | (true, None) => State::Trusts,
            (true, Some(false)) => State::NeedsRoot(format!("sudo {command}")),
            (false, _) => {
                let [ours, file] = [root.file(), &kind.file(root)].map(|path| quoted(&path.to_string_lossy()));
                State::NeedsRoot(format!("sudo install -m 644 {ours} {file} && sudo {command}"))
            }
        }
    }

    fn add(&self, root: &Root) -> State {
        self.look(root)
    }

    fn remove(&self, root: &Root) -> State {
        let Some(kind) = &self.kind else { return State::Lacks };
        let (file, command) = (kind.file(root), kind.command.join(" "));
        match (file.exists(), kind.has_taken(root)) {
            (true, _) => State::NeedsRoot(format!("sudo rm {} && sudo {command}", quoted(&file.to_string_lossy()))),
            (false, Some(true)) => State::NeedsRoot(format!("sudo {command}")),
            (false, _) => State::Lacks,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::trust::Authority;

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
        assert!(matches!(System::new(&places).add(authority.root()), State::Failed(why) if why.contains("NixOS")));
        fs::create_dir_all(&folder).unwrap();
        let system = System::new(&places);
        assert_eq!(system.look(authority.root()), system.add(authority.root()), "a look says what is to be done too");
        let State::NeedsRoot(command) = system.add(authority.root()) else { panic!("it has to be said") };
        assert!(
            command.starts_with("sudo install -m 644 ") && command.ends_with("&& sudo update-ca-trust extract"),
            "{command}"
        );
        assert_eq!(system.remove(authority.root()), State::Lacks);
        fs::copy(authority.file(), system.kind.as_ref().unwrap().file(authority.root())).unwrap();
        assert_eq!((system.look(authority.root()), system.add(authority.root())), (State::Trusts, State::Trusts));
        assert!(
            matches!(system.remove(authority.root()), State::NeedsRoot(command) if command.starts_with("sudo rm "))
        );
        // A certificate in the folder alone is not trusted: programs read the bundle.
        let bundle = home.path().join(BUNDLES[1]);
        fs::create_dir_all(bundle.parent().unwrap()).unwrap();
        fs::write(&bundle, "").unwrap();
        let system = System::new(&places);
        let take_up = State::NeedsRoot("sudo update-ca-trust extract".to_owned());
        assert_eq!(system.look(authority.root()), take_up);
        fs::copy(authority.file(), &bundle).unwrap();
        assert_eq!(system.look(authority.root()), State::Trusts);
        // As for a file that only root can read.
        fs::remove_file(system.kind.as_ref().unwrap().file(authority.root())).unwrap();
        assert_eq!(system.look(authority.root()), State::Trusts);
        assert_eq!(system.remove(authority.root()), take_up);
    }
}
