//! Checks of this machine: configuration, ports, limits, name resolution.

use std::{env, net::SocketAddr};

use futures::future::join_all;
use rustix::process::{Resource, getrlimit};
use tokio::net::lookup_host;

use super::{
    measured,
    report::{Check, Group, Status, quoted},
    scope::Scope,
    service,
};
use crate::{
    admin::socket,
    cli::{self, listeners},
    config::problem::LoadError,
    listener::bind::{self, BindError},
};

/// Below this limit, a page with many images uses up the open files; each request takes two.
const FEW_FILES: u64 = 1024;

/// Name of adit's processes.
const OWN_NAME: &str = "adit";

const GROUP: Group = Group::Machine;

pub async fn checks(scope: &Scope, problem: Option<&LoadError>) -> Vec<Check> {
    let mut all = vec![configuration(scope, problem)];
    all.extend(listeners(scope).await);
    all.push(open_files());
    all.push(measured(localhost_names(scope)).await);
    all.push(proxy_variables(|name| env::var(name).ok()));
    all.push(another_adit(scope).await);
    all.push(service::unit());
    all
}

fn configuration(scope: &Scope, problem: Option<&LoadError>) -> Check {
    const ID: &str = "configuration";
    if let Some(error) = problem {
        let count = error.problems.len();
        let says =
            format!("{} cannot be loaded: {count} mistake{}", error.file.display(), if count == 1 { "" } else { "s" });
        let lines: Vec<String> = error.to_string().lines().skip(1).map(|line| line.trim().to_owned()).collect();
        let file = quoted(&error.file.display().to_string());
        let check = Check::new(ID, GROUP, Status::Fail, says).detail(Some(lines.join("\n")));
        return match error.file.exists() {
            true => check.fix("see each mistake with its line", Some(format!("adit check {file}"))),
            false => check.fix("write one", Some(format!("adit --config {file} init"))),
        };
    }
    let config = &scope.router.config;
    let says = match &config.source {
        Some(file) => {
            let of_sni = config.sni.as_ref().map_or(0, |sni| sni.routes.len());
            let routes = config.http.routes.len() + config.tcp.routes.len() + of_sni;
            format!("the configuration {} has {routes} route{}", file.display(), if routes == 1 { "" } else { "s" })
        }
        None => "there is no configuration file: adit runs on defaults".to_owned(),
    };
    Check::new(ID, GROUP, Status::Ok, says)
}

/// Tries to bind each address of the configuration, with the code that adit uses.
async fn listeners(scope: &Scope) -> Vec<Check> {
    const ID: &str = "listen-port";
    // The kernel knows the process behind the socket even if it does not answer.
    let (ours, our_pid) = match socket::of_port(scope.port()).await {
        Some(socket) => tokio::join!(async { socket::status(&socket).await.ok() }, socket::owner(&socket)),
        None => (None, None),
    };
    let wanted = bind::wanted(&scope.router.config);
    let (mut checks, mut free) = (Vec::new(), Vec::new());
    let on_a_free_port = format!("adit{} --listen 127.0.0.1:{}", scope.option(), free_port());
    // A single command can allow all low ports.
    let lowest = wanted.iter().map(|wanted| wanted.key.1.port()).filter(|port| *port > 0).min();
    for wanted in wanted {
        let (kind, address) = wanted.key;
        match bind::listen(address) {
            Ok(_) => free.push(address.to_string()),
            // A second address is optional: this machine may have no IPv6.
            Err(error) if wanted.beside.is_some() && error.kind() != std::io::ErrorKind::AddrInUse => {}
            Err(source) => {
                let owner = listeners::owner(address);
                let listens = ours.as_ref().map(|status| status.overview.http.iter().chain(&status.overview.tcp));
                let is_ours = listens.is_some_and(|mut listens| listens.any(|other| *other == address))
                    || owner.as_ref().is_some_and(|owner| Some(owner.pid.cast_signed()) == our_pid);
                if is_ours {
                    free.push(format!("{address} (adit's already)"));
                    continue;
                }
                let taken = source.kind() == std::io::ErrorKind::AddrInUse;
                let error = BindError { kind, address, asked_by: wanted.asked_by, source };
                let by =
                    owner.as_ref().map(|owner| format!(" by {} (pid {})", owner.name, owner.pid)).unwrap_or_default();
                let says = if taken { format!("{address} is taken{by}") } else { error.to_string() };
                let check = Check::new(ID, GROUP, Status::Fail, says);
                // systemd holds the sockets of its units. To end the user's systemd would end the session.
                let is_systemd = owner.as_ref().is_some_and(|owner| owner.name == "systemd");
                checks.push(match (taken, kind) {
                    (true, _) if is_systemd => of_systemd(check, &error, cli::service::of_address(address)),
                    (true, bind::Kind::Http) => check.fix("listen on a free port", Some(on_a_free_port.clone())),
                    (true, _) if owner.is_some() => {
                        let (other, owner) = (error.other_port(), owner.unwrap_or_default());
                        match owner.name == OWN_NAME {
                            true => check.fix(format!("{other}: another adit has this one"), None),
                            false => check.fix(
                                format!("{other}, or stop the program that has it"),
                                Some(format!("kill {}", owner.pid)),
                            ),
                        }
                    }
                    _ if error.source.kind() == std::io::ErrorKind::PermissionDenied => {
                        let command = bind::allow(lowest.unwrap_or(address.port()));
                        check.fix("let ordinary users listen on low ports, or choose higher ones", command)
                    }
                    _ => check.fix(error.hint().unwrap_or_default(), None),
                });
            }
        }
    }
    if !free.is_empty() {
        checks.insert(0, Check::new(ID, GROUP, Status::Ok, format!("adit can listen on {}", free.join(", "))));
    }
    checks
}

/// Completes the check of an address that a socket unit has. `restart`: the command, if it is the unit of adit.
fn of_systemd(check: Check, error: &BindError, restart: Option<String>) -> Check {
    match restart {
        Some(restart) => check.fix("it is adit.socket's: start adit as the service", Some(restart)),
        None => {
            let fix = format!("{}, or stop the socket unit that has it", error.other_port());
            check.fix(fix, Some("systemctl list-sockets; systemctl --user list-sockets".to_owned()))
        }
    }
}

fn free_port() -> u16 {
    let bound = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    bound.map_or(0, |address| address.port())
}

fn open_files() -> Check {
    let limit = getrlimit(Resource::Nofile);
    let says = match limit.maximum {
        Some(hard) => format!("the open-file limit is {hard}"),
        None => "the number of open files is not limited".to_owned(),
    };
    match limit.maximum {
        Some(hard) if hard < FEW_FILES => Check::new("open-files", GROUP, Status::Warn, says)
            .detail(Some("each connection is one, and each connection to a pod another"))
            .fix(
                "raise the hard open-file limit, then start adit again",
                Some("sudo prlimit --pid $$ --nofile=65536".to_owned()),
            ),
        _ => Check::new("open-files", GROUP, Status::Ok, says),
    }
}

async fn localhost_names(scope: &Scope) -> Check {
    // A name that is certainly not in /etc/hosts.
    let found: Vec<SocketAddr> = match lookup_host("adit-doctor.shop.localhost:80").await {
        Ok(found) => found.collect(),
        Err(_) => Vec::new(),
    };
    of_names(&found, cli::dns::system(&scope.router.config).command())
}

/// Evaluates a look-up. `command`: the command that makes the system resolve the names.
fn of_names(found: &[SocketAddr], command: Option<String>) -> Check {
    const ID: &str = "localhost-names";
    let has = |text: &str| found.iter().any(|address| address.ip().to_string() == text);
    if found.iter().any(|address| !address.ip().is_loopback()) {
        let answer = found.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", ");
        return Check::new(
            ID,
            GROUP,
            Status::Warn,
            format!("the DNS server answers {answer} for names below localhost"),
        )
        .detail(Some("browsers and curl do not query it; other programs connect to a wrong host"))
        .fix("write the names that they need into /etc/hosts", Some(hosts()));
    }
    match (has("127.0.0.1"), has("::1")) {
        (true, true) => Check::new(ID, GROUP, Status::Ok, "names below localhost resolve to 127.0.0.1 and ::1"),
        (true, false) => Check::new(ID, GROUP, Status::Ok, "names below localhost resolve to 127.0.0.1"),
        (false, true) => Check::new(ID, GROUP, Status::Ok, "names below localhost resolve to ::1"),
        (false, false) => Check::new(ID, GROUP, Status::Warn, "this system does not resolve names below localhost")
            .detail(Some("browsers and curl resolve them by themselves; other programs do not"))
            .fix("have the system resolve them", Some(command.unwrap_or_else(hosts))),
    }
}

fn hosts() -> String {
    "echo '127.0.0.1 web.shop.localhost' | sudo tee -a /etc/hosts".to_owned()
}

/// Checks the proxy variables. curl, Python, Node and others send even names below localhost to a proxy, unless NO_PROXY has
/// them.
fn proxy_variables(variable: impl Fn(&str) -> Option<String>) -> Check {
    const ID: &str = "proxy-variables";
    let set = |name: &&str| variable(name).is_some_and(|value| !value.is_empty());
    let proxies: Vec<&str> = ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]
        .into_iter()
        .filter(set)
        .collect();
    if proxies.is_empty() {
        return Check::new(ID, GROUP, Status::Ok, "no proxy variable is set");
    }
    let names = proxies.join(" and ");
    let exceptions = variable("no_proxy").or_else(|| variable("NO_PROXY")).unwrap_or_default();
    let has = |text: &str| {
        exceptions
            .split([',', ' '])
            .any(|entry| entry == "*" || entry.trim_start_matches("*.").trim_start_matches('.') == text)
    };
    match has("localhost") && has("127.0.0.1") {
        true => Check::new(ID, GROUP, Status::Ok, format!("{names}: NO_PROXY excepts this machine")),
        false => Check::new(ID, GROUP, Status::Warn, format!("{names} catches names below localhost"))
            .detail(Some("browsers do not ask it for them, and neither does adit; curl and others do"))
            .fix(
                "except this machine",
                Some("export NO_PROXY=\"${NO_PROXY:+$NO_PROXY,}localhost,127.0.0.1,::1\" no_proxy=\"${no_proxy:+$no_proxy,}localhost,127.0.0.1,::1\"".to_owned()),
            ),
    }
}

async fn another_adit(scope: &Scope) -> Check {
    let mut others = Vec::new();
    let sockets = socket::sockets();
    // Concurrently: a process that hangs delays no other.
    let answers = join_all(sockets.iter().map(|socket| socket::status(socket))).await;
    for status in answers.into_iter().flatten() {
        let listens = status.overview.http.first();
        if listens.is_none_or(|address| address.port() != scope.port()) {
            let at = listens.map(|address| format!(" on {address}")).unwrap_or_default();
            others.push(format!("pid {}{at}", status.overview.pid));
        }
    }
    match others.is_empty() {
        true => Check::new("another-adit", GROUP, Status::Ok, "no other adit runs"),
        false => Check::new("another-adit", GROUP, Status::Ok, format!("another adit runs: {}", others.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_route_of_the_configuration_counts() {
        let text = "http: {k8s: {routes: {a.localhost: {service: x}}}}\n\
                    tcp: {k8s: {routes: {10: {service: x}}}}\n\
                    sni: {listen: \"127.0.0.1:0\", routes: {a.test: {k8s: {service: x}}}}\n";
        let mut config = crate::config::validate::parse("c".as_ref(), text.as_bytes()).unwrap();
        config.source = Some("c".into());
        let (clusters, router) = crate::cli::router(config);
        let globals = <crate::cli::Cli as clap::Parser>::parse_from(["adit"]).globals;
        let says = configuration(&Scope::new(clusters, router, &globals, None), None).says;
        assert!(says.ends_with("has 3 routes"), "{says}");
    }

    #[test]
    fn systemd_is_never_ended() {
        let address = "127.0.0.1:8989".parse().unwrap();
        let of = |restart: Option<&str>| {
            let source = std::io::ErrorKind::AddrInUse.into();
            let error = BindError { kind: bind::Kind::Http, address, asked_by: String::new(), source };
            let check = Check::new("listen-port", GROUP, Status::Fail, "taken");
            of_systemd(check, &error, restart.map(str::to_owned)).fix.unwrap().command.unwrap()
        };
        assert_eq!(of(Some("systemctl --user restart adit.service")), "systemctl --user restart adit.service");
        assert!(!of(None).contains("kill"));
    }

    #[test]
    fn a_proxy_that_catches_this_machine_is_named() {
        let check = |set: &'static [(&'static str, &'static str)]| {
            proxy_variables(move |name| {
                set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(check(&[]).status, Status::Ok);
        let caught = check(&[("http_proxy", "http://proxy:3128")]);
        assert!(caught.status == Status::Warn && caught.says.contains("http_proxy"), "{caught:?}");
        assert_eq!(check(&[("HTTP_PROXY", "http://p:1"), ("NO_PROXY", "localhost")]).status, Status::Warn);
        assert_eq!(check(&[("HTTP_PROXY", "http://p:1"), ("NO_PROXY", ".localhost,127.0.0.1")]).status, Status::Ok);
        assert_eq!(check(&[("ALL_PROXY", "socks5://p:1"), ("no_proxy", "*")]).status, Status::Ok);
    }

    #[test]
    fn names_below_localhost_lead_to_this_machine_or_nowhere() {
        let address = |text: &str| text.parse().unwrap();
        assert_eq!(of_names(&[], None).status, Status::Warn);
        assert_eq!(of_names(&[address("127.0.0.1:80"), address("[::1]:80")], None).status, Status::Ok);
        let captured = of_names(&[address("192.0.2.1:80")], None);
        assert!(captured.status == Status::Warn && captured.says.contains("192.0.2.1"), "{captured:?}");
    }
}
