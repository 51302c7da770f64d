//! systemd-resolved answers names below localhost itself. A drop-in of its configuration (resolved.conf(5)) sends queries for
//! other names to adit.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use super::{
    Act, Part, State, System, failed,
    files::{self, Found},
    no_server,
};

const RESOLV_CONF: &str = "etc/resolv.conf";
pub const DROP_IN: &str = "etc/systemd/resolved.conf.d/adit.conf";

/// Its other configuration files (resolved.conf(5)), and the keys in them.
const CONF: &str = "etc/systemd/resolved.conf";
const FOLDERS: [&str; 4] = [
    "etc/systemd/resolved.conf.d",
    "run/systemd/resolved.conf.d",
    "usr/local/lib/systemd/resolved.conf.d",
    "usr/lib/systemd/resolved.conf.d",
];
const SERVERS: &str = "DNS=";
const DOMAINS: &str = "Domains=";

/// File that exists while the service runs.
const RUNS: &str = "run/systemd/resolve/stub-resolv.conf";

/// Addresses of its stub listeners; the second one does not answer local names (systemd-resolved.service(8)).
const STUBS: [[u8; 4]; 2] = [[127, 0, 0, 53], [127, 0, 0, 54]];

/// Command after which it reads its configuration again.
pub const RESTART: &str = "systemctl restart systemd-resolved";

/// Returns the state of names below localhost, if the system asks systemd-resolved. `None`: it does not.
pub fn answers(root: &Path) -> Option<Part> {
    let file = root.join(RESOLV_CONF);
    let text = fs::read_to_string(&file).ok()?;
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok());
    let is_asked = servers.into_iter().any(|server| STUBS.iter().any(|stub| server == IpAddr::from(*stub)));
    let state = State::Asks("systemd-resolved".to_owned());
    is_asked.then(|| Part { name: "localhost".to_owned(), state, file })
}

/// Returns the state of names that are not below localhost. One file has all of them.
pub fn parts(system: &System, act: Act) -> Vec<Part> {
    let file = system.root.join(DROP_IN);
    let mut names = system.names.below.clone();
    if let (Act::Uninstall, Ok(Found::Ours(text))) = (act, files::find(&file)) {
        // Include names that adit has written for routes that no longer exist.
        let domains = text.lines().find_map(|line| line.strip_prefix(DOMAINS)).unwrap_or_default();
        names.extend(domains.split_whitespace().map(|domain| domain.trim_start_matches('~').to_owned()));
        names.sort();
        names.dedup();
    }
    let state = state(system, act, &file);
    names.iter().map(|name| Part { name: format!("*.{name}"), state: state.clone(), file: file.clone() }).collect()
}

fn state(system: &System, act: Act, file: &Path) -> State {
    let runs = system.root.join(RUNS).exists();
    let text = system.server.map(|server| text(server, &system.names.below));
    let text = match (act, text) {
        (Act::Install | Act::Look, _) if system.names.below.is_empty() => None,
        (Act::Install, _) if !runs => {
            let hint =
                "only systemd-resolved can ask adit for all names below one: write those that you need into /etc/hosts";
            return State::Failed(hint.to_owned());
        }
        (Act::Install | Act::Look, None) => return no_server(),
        (Act::Install | Act::Look, Some(text)) => match others(&system.root) {
            Some(other) => return State::Failed(asks_others(&other)),
            None => Some(text),
        },
        (Act::Uninstall, _) => None,
    };
    let done = match (act, &text) {
        (Act::Look, _) => Ok(()),
        (_, Some(text)) => files::write(file, text),
        (_, None) => files::remove(file),
    };
    match done.and_then(|()| files::find(file)) {
        Ok(Found::Ours(found)) if Some(&found) == text.as_ref() && runs => State::Asks("systemd-resolved".to_owned()),
        Ok(_) => State::Lacks,
        Err(error) => failed(file, &error),
    }
}

/// Returns another configuration file that sets global servers. systemd-resolved has one list of these, and asks the one that
/// answered last, whatever the name. So it would ask adit for all names, and other servers for adit's names.
fn others(root: &Path) -> Option<PathBuf> {
    let drop_ins = FOLDERS.iter().flat_map(|folder| fs::read_dir(root.join(folder)).into_iter().flatten().flatten());
    let drop_ins = drop_ins.map(|entry| entry.path()).filter(|file| *file != root.join(DROP_IN));
    let mut files = std::iter::once(root.join(CONF))
        .chain(drop_ins.filter(|file| file.extension().is_some_and(|end| end == "conf")));
    files.find(|file| {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().any(|line| line.trim().strip_prefix(SERVERS).is_some_and(|servers| !servers.trim().is_empty()))
    })
}

fn asks_others(file: &Path) -> String {
    let file = file.display();
    format!(
        "{file} names DNS servers for all names, and systemd-resolved would ask them too: write the names that you need into /etc/hosts"
    )
}

/// Returns the drop-in. Names with `~` go to the servers of this file, if no other file sets any; all other names go to the
/// servers of interfaces.
fn text(server: SocketAddr, names: &[String]) -> String {
    let names = names.iter().map(|name| format!("~{name}")).collect::<Vec<_>>().join(" ");
    format!("[Resolve]\n{SERVERS}{server}\n{DOMAINS}{names}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::{Kind, Names};

    fn system(root: &Path, names: &[&str]) -> System {
        let names = Names { single: Vec::new(), below: names.iter().map(|name| (*name).to_owned()).collect() };
        System::new(root, Kind::Linux, Some("127.0.0.1:8989".parse().unwrap()), Vec::new(), names)
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
        // The drop-in names the port, so after a change of the port it is outdated.
        let server = Some("[::1]:80".parse().unwrap());
        let moved = System { server, ..self::system(root.path(), &["dev.test", "shop.example"]) };
        assert_eq!(states(&moved.does(Act::Look))[1], State::Lacks);
        let remote = System { server: None, ..self::system(root.path(), &["dev.test"]) };
        assert!(matches!(&states(&remote.does(Act::Install))[1], State::Failed(why) if why.contains("http.listen")));
        for _ in 0..2 {
            assert_eq!(states(&system.does(Act::Uninstall)), [resolved(), State::Lacks, State::Lacks]);
        }
        let left = fs::read_dir(root.path().join("etc/systemd")).unwrap().flatten().map(|entry| entry.file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["resolved.conf"]);
    }

    #[test]
    fn a_route_that_is_gone_takes_its_part_of_the_drop_in_along() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), RUNS, "");
        let there = system(root.path(), &["dev.test"]);
        let gone = system(root.path(), &[]);
        for act in [Act::Uninstall, Act::Install] {
            there.does(Act::Install);
            assert!(there.drop_in().is_some());
            let parts = gone.does(act);
            assert_eq!(parts.iter().any(|part| part.name == "*.dev.test"), act == Act::Uninstall, "{parts:?}");
            assert_eq!(there.drop_in(), None);
        }
    }

    #[test]
    fn where_other_servers_are_for_all_names_nothing_is_written() {
        for file in [CONF, "run/systemd/resolved.conf.d/vpn.conf"] {
            let root = tempfile::tempdir().unwrap();
            write(root.path(), RUNS, "");
            let system = system(root.path(), &["dev.test"]);
            write(root.path(), file, "[Resolve]\n#DNS=1.1.1.1\nDNS=\nFallbackDNS=9.9.9.9\n");
            assert!(matches!(states(&system.does(Act::Install))[1], State::Asks(_)));
            write(root.path(), file, "[Resolve]\nDNS=1.1.1.1\n");
            for act in [Act::Look, Act::Install] {
                let state = &states(&system.does(act))[1];
                assert!(
                    matches!(state, State::Failed(why) if why.contains(file) && why.contains("/etc/hosts")),
                    "{state:?}"
                );
            }
            assert_eq!(states(&system.does(Act::Uninstall))[1], State::Lacks);
            assert_eq!(system.drop_in(), None);
        }
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
        // An existing folder is kept.
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
