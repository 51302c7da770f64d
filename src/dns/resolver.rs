//! macOS: a file of `/etc/resolver` leads questions for the names that it is called by to a server (resolver(5)).

use std::path::Path;

use super::{
    Act, Part, State, System, failed,
    files::{self, Found},
};

const FOLDER: &str = "etc/resolver";

/// One file for names below localhost, and one for each other name.
pub fn parts(system: &System, act: Act) -> Vec<Part> {
    let text = format!("nameserver 127.0.0.1\nport {}\n", system.port);
    let mut parts: Vec<Part> = std::iter::once("localhost")
        .chain(system.names.iter().map(String::as_str))
        .map(|name| {
            let file = system.root.join(FOLDER).join(name);
            Part { name: name.to_owned(), state: state(act, &file, &text), file }
        })
        .collect();
    if act == Act::Uninstall {
        parts.extend(others(system, &parts));
    }
    parts
}

/// Removes what was written for names that the configuration does not have any more.
fn others(system: &System, known: &[Part]) -> Vec<Part> {
    let entries = std::fs::read_dir(system.root.join(FOLDER)).into_iter().flatten().flatten().map(|entry| entry.path());
    let stale = entries.filter(|file| matches!(files::find(file), Ok(Found::Ours(_))));
    let part = |file: std::path::PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
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
        Ok(Found::Others) => State::Asks("a server that somebody else has named".to_owned()),
        Ok(_) => State::Lacks,
        Err(error) => failed(file, &error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::dns::Kind;

    #[test]
    fn the_files_come_and_go_and_leave_nothing() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let system = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            System::new(root.path(), Kind::MacOs, 8989, names)
        };
        let states = |parts: Vec<Part>| parts.into_iter().map(|part| part.state).collect::<Vec<_>>();
        let ours = || State::Asks("adit".to_owned());
        assert_eq!(states(system(&[]).does(Act::Look)), [State::Lacks]);
        for _ in 0..2 {
            assert_eq!(states(system(&["dev.test"]).does(Act::Install)), [ours(), ours()]);
        }
        let text = fs::read_to_string(root.path().join("etc/resolver/dev.test")).unwrap();
        assert!(text.ends_with("nameserver 127.0.0.1\nport 8989\n"), "{text}");
        // The route is gone, and its file with the others.
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
        let system = System::new(root.path(), Kind::MacOs, 8989, vec!["dev.test".to_owned()]);
        let installed = system.does(Act::Install);
        assert!(matches!(&installed[0].state, State::Failed(why) if why.contains("not written it")), "{installed:?}");
        assert_eq!(installed[1].state, State::Asks("adit".to_owned()));
        system.does(Act::Uninstall);
        assert_eq!(fs::read_to_string(&file).unwrap(), "nameserver 127.0.0.1\nport 5353\n");
        assert!(!file.with_file_name("dev.test").exists());
    }
}
