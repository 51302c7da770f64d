//! macOS: a file in `/etc/resolver` sends queries for the name in its file name, and all below it, to a server (resolver(5)).

use std::path::Path;

use super::{
    Act, Part, State, System, failed,
    files::{self, Found},
    no_server,
};

const FOLDER: &str = "etc/resolver";

/// Returns the states: one file is for names below localhost, and one for each other name.
pub fn parts(system: &System, act: Act) -> Vec<Part> {
    let text = system.server.map(|server| format!("nameserver {}\nport {}\n", server.ip(), server.port()));
    let mut parts: Vec<Part> = std::iter::once("localhost".to_owned())
        .chain(system.names.below.iter().map(|name| format!("*.{name}")))
        .map(|name| {
            let file = system.root.join(FOLDER).join(name.trim_start_matches("*."));
            let state = match (&text, act) {
                (None, Act::Install | Act::Look) => no_server(),
                (text, _) => state(act, &file, text.as_deref().unwrap_or_default()),
            };
            Part { name, state, file }
        })
        .collect();
    if act == Act::Uninstall {
        parts.extend(others(system, &parts));
    }
    parts
}

/// Deletes the files of names that the configuration no longer has.
fn others(system: &System, known: &[Part]) -> Vec<Part> {
    let entries = std::fs::read_dir(system.root.join(FOLDER)).into_iter().flatten().flatten().map(|entry| entry.path());
    let stale = entries.filter(|file| matches!(files::find(file), Ok(Found::Ours(_))));
    let part = |file: std::path::PathBuf| {
        let name = format!("*.{}", file.file_name().unwrap_or_default().to_string_lossy());
        Part { name, state: state(Act::Uninstall, &file, ""), file }
    };
    stale.map(part).filter(|part| !known.iter().any(|other| other.file == part.file)).collect()
}

fn state(act: Act, file: &Path, text: &str) -> State {
    let done = match act {
        Act::Install => files::write(file, text),
        Act::Uninstall => files::remove(file),
        Act::Look => Ok(()),
    };
    match done.and_then(|()| files::find(file)) {
        Ok(Found::Ours(found)) if found == text => State::Asks("adit".to_owned()),
        Ok(Found::Others) => State::Asks("a DNS server from a file of another program".to_owned()),
        Ok(_) => State::Lacks,
        Err(error) => failed(file, &error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::dns::{Kind, Names};

    fn system(root: &Path, below: &[&str]) -> System {
        let names = Names { single: Vec::new(), below: below.iter().map(|name| (*name).to_owned()).collect() };
        System::new(root, Kind::MacOs, Some("127.0.0.1:8989".parse().unwrap()), Vec::new(), names)
    }

    #[test]
    fn the_files_come_and_go_and_leave_nothing() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let system = |names: &[&str]| system(root.path(), names);
        let states = |parts: Vec<Part>| parts.into_iter().map(|part| part.state).collect::<Vec<_>>();
        let ours = || State::Asks("adit".to_owned());
        assert_eq!(states(system(&[]).does(Act::Look)), [State::Lacks]);
        for _ in 0..2 {
            assert_eq!(states(system(&["dev.test"]).does(Act::Install)), [ours(), ours()]);
        }
        let text = fs::read_to_string(root.path().join("etc/resolver/dev.test")).unwrap();
        assert!(text.ends_with("nameserver 127.0.0.1\nport 8989\n"), "{text}");
        // Uninstall also deletes the file of a route that no longer exists.
        assert_eq!(states(system(&[]).does(Act::Uninstall)), [State::Lacks, State::Lacks]);
        assert_eq!(fs::read_dir(root.path().join("etc")).unwrap().count(), 0);
        assert_eq!(states(system(&[]).does(Act::Uninstall)), [State::Lacks]);
    }

    #[test]
    fn the_file_of_another_server_stays_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("etc/resolver/localhost");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "nameserver 127.0.0.1\nport 5353\n").unwrap();
        let beside = file.with_file_name("dev.new");
        fs::write(&beside, "nameserver 127.0.0.2\n").unwrap();
        let system = system(root.path(), &["dev.test"]);
        let installed = system.does(Act::Install);
        assert!(matches!(&installed[0].state, State::Failed(why) if why.contains("not written it")), "{installed:?}");
        assert_eq!(installed[1].state, State::Asks("adit".to_owned()));
        system.does(Act::Uninstall);
        assert_eq!(fs::read_to_string(&file).unwrap(), "nameserver 127.0.0.1\nport 5353\n");
        assert!(!file.with_file_name("dev.test").exists());
        assert_eq!(fs::read_to_string(&beside).unwrap(), "nameserver 127.0.0.2\n");
    }
}
