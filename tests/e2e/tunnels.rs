//! Tunnels over time: shared, named in the status, closed when idle.

use std::{fs, time::Duration};

use crate::support::{Adit, NAMESPACE, eventually};

#[test]
fn two_names_of_one_service_share_a_tunnel() {
    let adit = Adit::start(
        "http:\n  listen: \"@HTTP@\"\n  k8s:\n    routes:\n      one.localhost: {namespace: adit-e2e, service: web, port: 80}\n      two.localhost: {namespace: adit-e2e, service: web, port: 80}",
    );
    adit.get("http://one.localhost/whoami");
    adit.get("http://two.localhost/whoami");
    adit.get(&format!("http://80.{}/whoami", adit.host("web")));
    let tunnels = adit.tunnels();
    assert_eq!(tunnels.len(), 1, "{tunnels:?}");
    let target = tunnels[0]["target"].as_str().unwrap();
    assert!(target.ends_with(&format!("/{NAMESPACE}/web:80")), "{target}");
    assert_eq!(tunnels[0]["state"], "running");
    assert!(tunnels[0]["pod"].as_str().unwrap().starts_with("web-"));
    if let Ok(protocol) = std::env::var("ADIT_E2E_PROTOCOL") {
        assert_eq!(tunnels[0]["transport"], protocol.as_str());
    }
}

#[test]
fn an_idle_tunnel_closes_its_connections() {
    let adit = Adit::start("http: {listen: \"@HTTP@\", idle_timeout: 2s}");
    assert_eq!(upgraded_connections(&adit), 0);
    adit.get(&format!("http://80.{}/whoami", adit.host("web")));
    assert!(upgraded_connections(&adit) > 0, "a used tunnel holds a connection");
    // One may be spare: the context was in use a moment ago.
    eventually("the idle tunnel's connections are closed", Duration::from_secs(20), || {
        upgraded_connections(&adit) <= 1
    });
    eventually("a context that is not in use has no spare connection", Duration::from_secs(200), || {
        upgraded_connections(&adit) == 0
    });
    assert!(adit.tunnels().iter().all(|tunnel| tunnel["state"] != "running"));
    adit.get(&format!("http://80.{}/whoami", adit.host("web")));
}

#[test]
fn a_stopped_tunnel_is_made_again_when_it_is_needed() {
    let adit = Adit::plain();
    let url = format!("http://80.{}/whoami", adit.host("web"));
    adit.get(&url);
    let target = adit.tunnels()[0]["target"].as_str().unwrap().to_owned();
    crate::support::succeed(
        std::process::Command::new(env!("CARGO_BIN_EXE_adit"))
            .args(["stop", &target])
            .env("XDG_RUNTIME_DIR", adit.folder()),
    );
    eventually("the tunnel stops", Duration::from_secs(5), || {
        adit.tunnels().iter().all(|tunnel| tunnel["state"] != "running")
    });
    adit.get(&url);
}

/// Returns how many established TCP connections this adit has to the API server, beyond one for API calls.
fn upgraded_connections(adit: &Adit) -> usize {
    let server =
        crate::support::kubectl(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let port: u16 =
        server.trim().trim_end_matches('/').rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(443);
    let sockets: Vec<String> = fs::read_dir(format!("/proc/{}/fd", adit.pid()))
        .unwrap()
        .filter_map(|entry| {
            fs::read_link(entry.ok()?.path())
                .ok()?
                .to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')
                .map(str::to_owned)
        })
        .collect();
    let table = ["tcp", "tcp6"]
        .map(|name| fs::read_to_string(format!("/proc/{}/net/{name}", adit.pid())).unwrap_or_default())
        .concat();
    let established = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        // Columns of /proc/net/tcp: 2 is the remote address in hex, 3 the state (01: established), 9 the inode.
        .filter(|columns| columns.len() > 9 && columns[2].ends_with(&format!(":{port:04X}")) && columns[3] == "01")
        .filter(|columns| sockets.iter().any(|inode| inode == columns[9]))
        .count();
    established.saturating_sub(1)
}
