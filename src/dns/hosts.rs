//! `/etc/hosts` gives single names the address of this machine: the hosts of routes without a wildcard. Every resolver reads it
//! before it asks DNS servers, even if adit does not run. Names below these keep their public addresses.
//!
//! adit writes its lines at the start of the file, and finds them anywhere in it. Removing them restores it byte for byte.

use std::{collections::BTreeSet, fs, io, net::IpAddr, path::Path};

use super::{Act, Part, State, System, failed};
use crate::atomic_file;

const FILE: &str = "etc/hosts";

/// Lines around adit's own.
const BEGIN: &str = "# Written by 'adit dns install', and removed by 'adit dns uninstall':\n";
const END: &str = "# The end of what adit has written.\n";

/// Reads or changes the file, and returns the state of each name.
pub fn parts(system: &System, act: Act) -> Vec<Part> {
    let file = system.root.join(FILE);
    let mut names = system.names.single.clone();
    let part = |name: String, state| Part { name, state, file: file.clone() };
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) => return names.into_iter().map(|name| part(name, failed(&file, &error))).collect(),
    };
    let (ours, others) = split(&text);
    let others = &others;
    let wanted = match act {
        Act::Uninstall => String::new(),
        Act::Install | Act::Look => lines(system, others),
    };
    if act == Act::Uninstall {
        // Include names that adit has written for routes that no longer exist.
        let known = ours.lines().filter(|line| !line.starts_with('#')).flat_map(|line| line.split_whitespace().skip(1));
        let gone: BTreeSet<String> = known.map(str::to_owned).filter(|name| !names.contains(name)).collect();
        names.extend(gone);
    }
    let written = match act {
        Act::Install | Act::Uninstall if ours != wanted => write(&file, &format!("{wanted}{others}")),
        _ => Ok(()),
    };
    let is_right = act == Act::Install || ours == wanted;
    let state = |name: &str| match (&written, address(others, name), address(&wanted, name)) {
        (Err(error), ..) => failed(&file, error),
        (_, Some(address), _) if system.addresses.contains(&address) => State::Asks(by()),
        (_, Some(_), _) if act == Act::Uninstall => State::Lacks,
        (_, Some(address), _) => State::Failed(format!("a line of {} says {address}", file.display())),
        (_, None, Some(_)) if is_right => State::Asks(by()),
        _ => State::Lacks,
    };
    names.into_iter().map(|name| (state(&name), name)).map(|(state, name)| part(name, state)).collect()
}

fn by() -> String {
    "the hosts file".to_owned()
}

/// Returns adit's lines, and all others. Other programs may have written lines before them.
fn split(text: &str) -> (&str, String) {
    let begin = text.match_indices(BEGIN).map(|(at, _)| at).find(|at| *at == 0 || text[..*at].ends_with('\n'));
    match begin.and_then(|begin| Some(begin..begin + text[begin..].find(END)? + END.len())) {
        Some(ours) => (&text[ours.clone()], [&text[..ours.start], &text[ours.end..]].concat()),
        None => ("", text.to_owned()),
    }
}

/// Returns adit's lines for the names that the other lines do not have.
fn lines(system: &System, others: &str) -> String {
    let names = system.names.single.iter().map(String::as_str).filter(|name| address(others, name).is_none());
    let names: Vec<&str> = names.collect();
    if names.is_empty() {
        return String::new();
    }
    let lines = system.addresses.iter().flat_map(|address| names.iter().map(move |name| format!("{address} {name}\n")));
    [BEGIN.to_owned(), lines.collect(), END.to_owned()].concat()
}

/// Returns the first address of a name in the text (hosts(5)).
fn address(text: &str, name: &str) -> Option<IpAddr> {
    text.lines().find_map(|line| {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    })
}

/// Replaces the file as a whole. In containers the file is a mount, which cannot be replaced (EBUSY), so it is overwritten in
/// place.
fn write(file: &Path, text: &str) -> io::Result<()> {
    match atomic_file::rewrite(file, text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => fs::write(file, text),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::{Kind, Names};

    const BEFORE: &str = "127.0.0.1\tlocalhost\n10.0.0.9 db.test # the old one\n127.0.0.1 mine.test";

    fn system(root: &Path, names: &[&str]) -> System {
        let names = Names { single: names.iter().map(|name| (*name).to_owned()).collect(), below: Vec::new() };
        System::new(root, Kind::MacOs, None, vec![[127, 0, 0, 1].into()], names)
    }

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join(FILE), BEFORE).unwrap();
        root
    }

    fn states(parts: Vec<Part>) -> Vec<State> {
        parts.into_iter().map(|part| part.state).collect()
    }

    #[test]
    fn single_names_come_and_go_and_the_file_is_as_it_was() {
        let root = root();
        let read = || fs::read_to_string(root.path().join(FILE)).unwrap();
        let ours = system(root.path(), &["shop.test", "api.test"]);
        let asks = || State::Asks(by());
        assert_eq!(states(parts(&ours, Act::Look)), [State::Lacks, State::Lacks]);
        for _ in 0..2 {
            assert_eq!(states(parts(&ours, Act::Install)), [asks(), asks()]);
            assert_eq!(read(), format!("{BEGIN}127.0.0.1 shop.test\n127.0.0.1 api.test\n{END}{BEFORE}"));
        }
        assert_eq!(states(parts(&ours, Act::Look)), [asks(), asks()]);
        // The address changes, and one route is replaced.
        let moved =
            System { addresses: vec![[127, 0, 0, 77].into()], ..system(root.path(), &["shop.test", "new.test"]) };
        assert_eq!(states(parts(&moved, Act::Look)), [State::Lacks, State::Lacks]);
        assert_eq!(states(parts(&moved, Act::Install)), [asks(), asks()]);
        assert!(read().contains("127.0.0.77 new.test\n") && !read().contains("api.test"));
        let gone = system(root.path(), &[]);
        assert_eq!(parts(&gone, Act::Uninstall).len(), 2, "those of routes that are gone");
        assert_eq!(read(), BEFORE);
    }

    #[test]
    fn lines_that_others_write_first_hide_nothing() {
        let root = root();
        let (file, ours) = (root.path().join(FILE), system(root.path(), &["shop.test"]));
        for act in [Act::Install, Act::Uninstall] {
            parts(&ours, Act::Install);
            let others = format!("127.0.0.1 vpn.test\n{}", fs::read_to_string(&file).unwrap());
            fs::write(&file, others).unwrap();
            assert_eq!(states(parts(&ours, Act::Look)), [State::Asks(by())]);
            parts(&ours, act);
            assert_eq!(fs::read_to_string(&file).unwrap().matches(BEGIN).count(), usize::from(act == Act::Install));
        }
        let left = fs::read_to_string(&file).unwrap();
        assert_eq!(left, format!("127.0.0.1 vpn.test\n127.0.0.1 vpn.test\n{BEFORE}"));
    }

    #[test]
    fn lines_of_others_stay_and_are_told_where_they_lead_elsewhere() {
        let root = root();
        let system = system(root.path(), &["mine.test", "DB.test"]);
        for act in [Act::Look, Act::Install] {
            let [mine, other] = &states(parts(&system, act))[..] else { panic!("two names") };
            assert_eq!(*mine, State::Asks(by()));
            assert!(matches!(other, State::Failed(why) if why.contains("10.0.0.9")), "{other:?}");
        }
        assert_eq!(states(parts(&system, Act::Uninstall)), [State::Asks(by()), State::Lacks]);
        assert_eq!(fs::read_to_string(root.path().join(FILE)).unwrap(), BEFORE);
    }
}
