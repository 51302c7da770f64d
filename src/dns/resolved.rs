//! systemd-resolved: it answers for names below localhost by itself, and a drop-in of its configuration (resolved.conf(5)) leads questions
//! for other names to adit.

use std::{fs, net::IpAddr, path::Path};

use super::{
    Act, Part, State, System, failed,
    files::{self, Found},
};

const RESOLV_CONF: &str = "etc/resolv.conf";
const DROP_IN: &str = "etc/systemd/resolved.conf.d/adit.conf";

/// It is there while the service runs.
const RUNS: &str = "run/systemd/resolve/stub-resolv.conf";

/// Addresses that it listens on, the second one without names of its own (systemd-resolved.service(8)).
const STUBS: [[u8; 4]; 2] = [[127, 0, 0, 53], [127, 0, 0, 54]];

/// Command that makes it read its configuration again.
pub const RESTART: &str = "systemctl restart systemd-resolved";

/// Returns what is the case for names below localhost where the system asks it. None: the system does not.
pub fn answers(root: &Path) -> Option<Part> {
    let file = root.join(RESOLV_CONF);
    let text = fs::read_to_string(&file).ok()?;
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok());
    let is_asked = servers.into_iter().any(|server| STUBS.iter().any(|stub| server == IpAddr::from(*stub)));
    let state = State::Asks("systemd-resolved".to_owned());
    is_asked.then(|| Part { name: "localhost".to_owned(), state, file })
}

/// Treatment of names that are not below localhost: all of them are in one file.
pub fn parts(system: &System, act: Act) -> Vec<Part> {
    let file = system.root.join(DROP_IN);
    let text = text(system.port, &system.names);
    let state = state(system, act, &file, &text);
    let part = |name: &String| Part { name: name.clone(), state: state.clone(), file: file.clone() };
    system.names.iter().map(part).collect()
}

fn state(system: &System, act: Act, file: &Path, text: &str) -> State {
    let runs = system.root.join(RUNS).exists();
    let done = match act {
        Act::Install if !runs => {
            let hint = "without systemd-resolved a line for each name in /etc/hosts is what is left";
            return State::Failed(hint.to_owned());
        }
        Act::Install if !system.names.is_empty() => files::write(file, text),
        Act::Uninstall => files::remove(file),
        Act::Install | Act::Look => Ok(()),
    };
    match done.and_then(|()| files::find(file)) {
        Ok(Found::Ours(found)) if found == text && runs => State::Asks("systemd-resolved".to_owned()),
        Ok(_) => State::Lacks,
        Err(error) => failed(file, &error),
    }
}

/// Names with `~` go to this server, and no others do.
fn text(port: u16, names: &[String]) -> String {
    let names = names.iter().map(|name| format!("~{name}")).collect::<Vec<_>>().join(" ");
    format!("[Resolve]\nDNS=127.0.0.1:{port}\nDomains={names}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::Kind;

    fn system(root: &Path, names: &[&str]) -> System {
        System::new(root, Kind::Linux, 8989, names.iter().map(|name| (*name).to_owned()).collect())
    }

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn states(parts: &[Part]) -> Vec<State> {
        parts.iter().map(|part| part.state.clone()).collect()
    }

    #[test]
    fn a_system_that_asks_it_needs_nothing_for_localhost() {
        for (text, is_asked) in [
            ("nameserver 127.0.0.53\noptions edns0\n", true),
            ("# nameserver 127.0.0.53\nnameserver\t127.0.0.54\n", true),
            ("nameserver 10.0.0.1\n", false),
            ("", false),
        ] {
            let root = tempfile::tempdir().unwrap();
            write(root.path(), RESOLV_CONF, text);
            assert_eq!(answers(root.path()).is_some(), is_asked, "{text}");
        }
    }

    #[test]
    fn the_drop_in_comes_and_goes_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), RESOLV_CONF, "nameserver 127.0.0.53\n");
        write(root.path(), RUNS, "");
        write(root.path(), "etc/systemd/resolved.conf", "[Resolve]\n");
        let system = system(root.path(), &["dev.test", "shop.example"]);
        let resolved = || State::Asks("systemd-resolved".to_owned());
        assert_eq!(states(&system.does(Act::Look)), [resolved(), State::Lacks, State::Lacks]);
        for _ in 0..2 {
            assert_eq!(states(&system.does(Act::Install)), [resolved(), resolved(), resolved()]);
        }
        let text = fs::read_to_string(root.path().join(DROP_IN)).unwrap();
        assert!(text.ends_with("[Resolve]\nDNS=127.0.0.1:8989\nDomains=~dev.test ~shop.example\n"), "{text}");
        // Another port is another file.
        let moved = System { port: 80, ..self::system(root.path(), &["dev.test", "shop.example"]) };
        assert_eq!(states(&moved.does(Act::Look))[1], State::Lacks);
        for _ in 0..2 {
            assert_eq!(states(&system.does(Act::Uninstall)), [resolved(), State::Lacks, State::Lacks]);
        }
        let left = fs::read_dir(root.path().join("etc/systemd")).unwrap().flatten().map(|entry| entry.file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["resolved.conf"]);
    }

    #[test]
    fn files_and_folders_of_others_stay() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), RUNS, "");
        write(root.path(), DROP_IN, "[Resolve]\nDNS=10.0.0.1\n");
        let system = system(root.path(), &["dev.test"]);
        assert!(matches!(&states(&system.does(Act::Install))[1], State::Failed(why) if why.contains("not written it")));
        assert_eq!(states(&system.does(Act::Uninstall))[1], State::Lacks);
        assert_eq!(fs::read_to_string(root.path().join(DROP_IN)).unwrap(), "[Resolve]\nDNS=10.0.0.1\n");
        // A folder that was there before is there afterwards.
        fs::remove_file(root.path().join(DROP_IN)).unwrap();
        assert!(matches!(states(&system.does(Act::Install))[1], State::Asks(_)));
        assert_eq!(states(&system.does(Act::Uninstall))[1], State::Lacks);
        assert!(root.path().join(DROP_IN).parent().unwrap().exists());
    }

    #[test]
    fn without_it_other_names_cannot_be_had() {
        let root = tempfile::tempdir().unwrap();
        let system = system(root.path(), &["dev.test"]);
        assert!(matches!(&states(&system.does(Act::Install))[1], State::Failed(why) if why.contains("/etc/hosts")));
        assert!(!root.path().join(DROP_IN).exists());
    }
}
