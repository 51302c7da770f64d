//! `adit dns`: makes the system resolve adit's names, for programs that do not do so themselves.

use std::{
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::Path,
    process::{Command, ExitCode},
    sync::mpsc,
    thread,
    time::Duration,
};

use clap::Subcommand;

use super::{
    Globals,
    doctor::report::quoted,
    report::{CliError, print},
};
use crate::{
    config::{Config, listen::of_this_machine},
    dns::{Act, Kind, Names, Part, RESTART, State, System},
    subprocess,
};

/// Time limit of a restart. systemd gives a service 90 s to stop and 90 s to start.
const RESTART_PATIENCE: Duration = Duration::from_secs(200);

/// Time limit of the system's resolver, which asks its first server twice in 10 s.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  adit dns status\n  sudo adit dns install\n  sudo adit --config ~/.config/adit/config.yaml dns install\n\n\
                  Browsers and curl resolve names below localhost by themselves; other programs ask the system.\n\
                  install changes, for names below localhost, /etc/nsswitch.conf (Linux) or /etc/resolver (macOS); for\n\
                  wildcards, systemd-resolved or /etc/resolver; for other hosts of routes, /etc/hosts.\n\n\
                  Exit codes of status: 0 the system resolves the names; 1 not all"
)]
pub struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Let the system resolve the names (needs root)
    Install,
    /// Restore the system as it was (needs root)
    Uninstall,
    /// Show which names the system resolves
    Status,
}

/// Returns this system's DNS settings for the names of a configuration.
pub fn system(config: &Config) -> System {
    let (server, addresses, names) = where_to(config);
    System::new(Path::new("/"), Kind::here(), server, addresses, names)
}

/// Returns the address at which adit answers DNS queries, the addresses of the names, and the names.
fn where_to(config: &Config) -> (Option<SocketAddr>, Vec<IpAddr>, Names) {
    let is_other = |name: &&str| {
        *name != "localhost"
            && !name.ends_with(".localhost")
            && name.trim_matches(['[', ']']).parse::<IpAddr>().is_err()
    };
    let (below, single): (Vec<&str>, Vec<&str>) =
        config.http.routes.keys().map(String::as_str).partition(|host| host.starts_with("*."));
    let below = below.into_iter().map(|host| host.trim_start_matches("*."));
    let below = below.chain([config.http.dynamic_host.as_str()]).filter(is_other);
    let owned = |name: &str| name.to_owned();
    let names =
        Names { single: single.into_iter().filter(is_other).map(owned).collect(), below: below.map(owned).collect() };
    let mut listeners: Vec<SocketAddr> = config.http.listen.iter().copied().map(of_this_machine).collect();
    let server = listeners.iter().find(|listener| listener.ip().is_loopback()).copied();
    // A wildcard listener also accepts connections of other machines, but names should lead to this one.
    listeners.retain(|listener| server.is_none() || listener.ip().is_loopback());
    let mut addresses: Vec<IpAddr> = listeners.iter().map(SocketAddr::ip).collect();
    addresses.dedup();
    (server, addresses, names)
}

pub fn run(globals: &Globals, args: &Args) -> Result<ExitCode, CliError> {
    let config = globals.load()?;
    let (system, by_root) = (system(&config), by_root(globals, &config));
    let act = match args.command {
        Action::Install => Act::Install,
        Action::Uninstall => Act::Uninstall,
        Action::Status => Act::Look,
    };
    let (before, drop_in) = (system.does(Act::Look), system.drop_in());
    let parts = if act == Act::Look { before.clone() } else { system.does(act) };
    if system.drop_in() != drop_in {
        restart(&system, act, &by_root)?;
    }
    let mut is_well = true;
    let mut needs_root = None;
    for part in &parts {
        is_well &= match &part.state {
            State::Asks(_) => act != Act::Uninstall || before.contains(part),
            State::Lacks => act == Act::Uninstall,
            _ => false,
        };
        if part.state == State::NeedsRoot {
            needs_root = Some(&part.file);
        }
        print(&line(part, act, &by_root))?;
        if let (State::Asks(_), Act::Install | Act::Look, Some(name)) = (&part.state, act, probe(&part.name))
            && let found = lookup(&name)
            && let Some(what) = objection(&name, found.as_deref())
        {
            // Before adit's first start, no answer is expected.
            is_well &= act == Act::Install && found.is_none();
            print(&what)?;
        }
    }
    if let Some(file) = needs_root {
        let word = if act == Act::Install { "install" } else { "uninstall" };
        let error = CliError::new(format!("{} cannot be changed without root", file.display()));
        return Err(error.hint(Some(format!("{by_root} {word}"))));
    }
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the command with `sudo`, and with the options that root's environment lacks.
fn by_root(globals: &Globals, config: &Config) -> String {
    let mut words = vec!["sudo adit".to_owned()];
    if let Some(file) = &config.source {
        words.push(format!("--config {}", quoted(&file.display().to_string())));
    }
    words.extend(globals.listen.as_ref().map(|listen| format!("--listen {}", quoted(listen))));
    words.join(" ") + " dns"
}

fn line(part: &Part, act: Act, by_root: &str) -> String {
    let Part { name, state, file } = part;
    let names = match name.strip_prefix("*.") {
        Some(name) => format!("names below {name}"),
        None if name == "localhost" => "names below localhost".to_owned(),
        None => name.clone(),
    };
    let file = file.display();
    match state {
        State::Asks(by) => format!("{names}: resolved by {by} ({file})\n"),
        State::Lacks if act == Act::Uninstall => format!("{names}: {file} is as it was\n"),
        State::Lacks => format!("{names}: not resolved ({file}): {by_root} install\n"),
        State::NeedsRoot => format!("{names}: not changed\n"),
        State::NeedsPackage(what) | State::Failed(what) => format!("{names}: not resolved: {what}\n"),
    }
}

/// Restarts systemd-resolved, which reads its files only at the start. If the restart fails, removes the drop-in, because the
/// next run would consider it active.
fn restart(system: &System, act: Act, by_root: &str) -> Result<(), CliError> {
    let mut words = RESTART.split(' ');
    let ran = subprocess::output(Command::new(words.next().unwrap_or_default()).args(words), RESTART_PATIENCE);
    let cause = match ran {
        Ok(output) if output.status.success() => return print(&format!("ran {RESTART}\n")),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    let hint = match act {
        Act::Install => {
            system.remove_drop_in().map_err(|error| CliError::new("the drop-in stays").cause(Some(error)))?;
            format!("its drop-in is removed again: {by_root} install, once 'sudo {RESTART}' succeeds")
        }
        Act::Uninstall | Act::Look => format!("sudo {RESTART}"),
    };
    Err(CliError::new("systemd-resolved was not restarted").cause(Some(cause)).hint(Some(hint)))
}

/// Returns a name to look up. `None`: names below localhost, which `adit doctor` looks up.
fn probe(name: &str) -> Option<String> {
    match name.strip_prefix("*.") {
        Some(name) => Some(format!("adit-dns.{name}")),
        None => (name != "localhost").then(|| name.to_owned()),
    }
}

/// Looks up a name with the system's resolver, as other programs do. `None`: no answer in time.
fn lookup(name: &str) -> Option<Vec<IpAddr>> {
    let (found_tx, found_rx) = mpsc::channel();
    let asked = (name.to_owned(), 0);
    // getaddrinfo has no timeout; a thread that still waits ends with the process.
    thread::spawn(move || {
        let found = asked.to_socket_addrs().ok().map(|all| all.map(|address| address.ip()).collect());
        let _ = found_tx.send(found);
    });
    found_rx.recv_timeout(LOOKUP_PATIENCE).ok().flatten()
}

/// Returns the problem with the system's answer for a name that must lead to this machine. `None`: none.
fn objection(name: &str, found: Option<&[IpAddr]>) -> Option<String> {
    let Some(found) = found else {
        return Some(format!("  but {name} has no address: start adit, and run 'adit dns status'\n"));
    };
    let other = found.iter().find(|address| !address.to_canonical().is_loopback())?;
    Some(format!(
        "  but the system resolves {name} to {other}: another DNS server or a line in /etc/hosts answers first\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::validate;

    #[test]
    fn what_the_system_resolves_otherwise_is_told() {
        let local = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(objection("shop.test", Some(&[local])), None);
        let other = objection("shop.test", Some(&[local, [203, 0, 113, 9].into()])).unwrap();
        assert!(other.contains("resolves shop.test to 203.0.113.9"), "{other}");
        assert!(objection("shop.test", None).unwrap().contains("start adit"));
        assert_eq!(probe("*.dev.test").as_deref(), Some("adit-dns.dev.test"));
        assert_eq!((probe("shop.test").as_deref(), probe("localhost")), (Some("shop.test"), None));
        assert_eq!(lookup("localhost.invalid"), None);
    }

    #[test]
    fn single_names_and_wildcards_lead_to_the_listener_of_this_machine() {
        let hosts = ["shop.test", "'*.api.test'", "a.localhost"];
        let routes = hosts.map(|host| format!("{host}: {{namespace: shop, service: web}}")).join(", ");
        let listen = "listen: ['192.0.2.1:80', '127.0.0.77:8989']";
        let text = format!("http: {{{listen}, k8s: {{dynamic_host: dev.test, routes: {{{routes}}}}}}}\n");
        let config = validate::parse(Path::new("test.yaml"), text.as_bytes()).unwrap();
        let names = Names { single: vec!["shop.test".into()], below: vec!["api.test".into(), "dev.test".into()] };
        let wanted = (Some("127.0.0.77:8989".parse().unwrap()), vec![[127, 0, 0, 77].into()], names);
        assert_eq!(where_to(&config), wanted);
    }
}
