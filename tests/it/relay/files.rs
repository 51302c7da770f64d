//! Keys and certificates that change while the relay runs.

use std::path::{Path, PathBuf};

use adit::relay::{
    app::{Bound, HttpSettings, PemFiles, Settings},
    expose::Authority,
};
use rustls::pki_types::CertificateDer;

use super::*;

const OTHER: &str = "another-secret-of-the-tests";

struct Running {
    control: SocketAddr,
    http: SocketAddr,
    drain: Drain,
}

fn pem(folder: &Path, name: &str) -> PemFiles {
    let files = PemFiles { chain: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}.key")) };
    let made = rcgen::generate_simple_self_signed(["web.relay.test".to_owned()]).unwrap();
    std::fs::write(&files.chain, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    files
}

/// Returns the settings of a relay without names.
fn settings(control: SocketAddr, keys: PathBuf, tls: PemFiles) -> Settings {
    Settings {
        control,
        keys: Some(keys),
        tls: Some(tls),
        http: None,
        admin: None,
        metrics: None,
        ports: ports(10).forever(),
        bind: "127.0.0.1".parse().unwrap(),
        allow_v1: false,
        register: None,
        authority: Authority::Keys,
        limits: Limits::default(),
    }
}

fn run(keys: PathBuf, tls: PemFiles, of_names: PemFiles) -> Running {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let http = HttpSettings { listen: any, domain: "relay.test".into(), tls: Some(of_names), public: None };
    let relay = Bound::bind(Settings { http: Some(http), ..settings(any, keys, tls) }).unwrap();
    let (control, http) = (relay.control().unwrap(), relay.http().unwrap());
    assert_eq!(http.0, "https");
    let drain = Drain::new();
    let of_relay = drain.clone();
    tokio::spawn(async move { relay.run(of_relay).await.unwrap() });
    Running { control, http: http.1, drain }
}

impl Running {
    fn client(&self, local_port: u16, key: &str, secret: &str) -> client::Options {
        client::Options {
            dial: Arc::new(Direct { host: "127.0.0.1".into(), port: self.control.port() }),
            key: key.into(),
            secret: secret.into(),
            trust: Trust::Secret,
            local_host: None,
            tunnels: vec![Wanted { local_port, kind: Kind::Tcp, port: 0, name: String::new() }],
        }
    }

    /// Returns the certificate that a port presents.
    async fn shows(&self, address: SocketAddr) -> CertificateDer<'static> {
        let is_control = address == self.control;
        let mut config = (*tls::client_config(&Trust::Secret).unwrap()).clone();
        if !is_control {
            config.alpn_protocols.clear();
        }
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("web.relay.test").unwrap();
        let tls = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        tls.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    }
}

#[tokio::test]
async fn keys_and_certificates_are_read_again_and_nobodys_tunnel_ends() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    std::fs::write(&keys, format!("ana {OTHER}\n")).unwrap();
    let (tls, of_names) = (pem(folder.path(), "relay"), pem(folder.path(), "names"));
    let relay = run(keys.clone(), tls, of_names);
    let (drain, (local, _)) = (Drain::new(), echo().await);
    let (mut rx, _running) = start(relay.client(local, "ana", OTHER), &drain);
    let mut visitor = TcpStream::connect(opened(&mut rx).await).await.unwrap();
    let (before, of_names) = (relay.shows(relay.control).await, relay.shows(relay.http).await);

    // Invalid files change nothing.
    std::fs::write(&keys, "ana short\n").unwrap();
    std::fs::write(folder.path().join("names.pem"), "no certificate").unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(relay.shows(relay.http).await, of_names);
    let (mut again, _running) = start(relay.client(local, "ana", OTHER), &drain);
    opened(&mut again).await;

    std::fs::write(&keys, format!("bo {OTHER}\n")).unwrap();
    let made = (pem(folder.path(), "relay"), pem(folder.path(), "names"));
    let new = |files: &PemFiles| adit::tls::certificates(&files.chain).unwrap()[0].clone();
    eventually("both certificates are new", || async {
        relay.shows(relay.control).await == new(&made.0) && relay.shows(relay.http).await == new(&made.1)
    })
    .await;
    assert_ne!((before, of_names), (new(&made.0), new(&made.1)));
    let (mut of_bo, _running) = start(relay.client(local, "bo", OTHER), &drain);
    opened(&mut of_bo).await;
    let options = relay.client(local, "ana", OTHER);
    let refused = client::run(move || Ok(options.clone()), Refusals::End, drain.clone(), |_| {});
    let refused = timeout(PATIENCE, refused).await.expect("soon").unwrap_err().to_string();
    assert!(refused.contains("the secret is not the one of this relay"), "{refused}");

    // A visitor's stream survives the removal of its client's key.
    visitor.write_all(b"x").await.unwrap();
    assert_eq!(timeout(PATIENCE, visitor.read_u8()).await.unwrap().unwrap(), b'x');
    drain.start();
    relay.drain.start();
}

#[tokio::test]
async fn a_relay_that_cannot_start_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let (keys, tls) = (folder.path().join("keys"), pem(folder.path(), "relay"));
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let settings = |control| settings(control, keys.clone(), tls.clone());
    let failed = |settings| {
        let error = Bound::bind(settings).err().unwrap();
        format!("{error}: {}", error.cause())
    };
    assert!(failed(settings(any)).starts_with("cannot read the secret: "));
    std::fs::write(&keys, OTHER).unwrap();
    let taken = std::net::TcpListener::bind(any).unwrap();
    let address = taken.local_addr().unwrap();
    assert!(failed(settings(address)).starts_with(&format!("cannot listen on {address}: the port is already in use")));
    assert!(
        failed(Settings { register: Some(None), ..settings(any) })
            .starts_with("--register: cannot take over Services: ")
    );
    std::fs::write(&tls.key, "no key").unwrap();
    assert!(failed(settings(any)).starts_with("cannot use the certificate: "));
}

#[tokio::test]
async fn everybody_may_ask_for_numbers_and_nobody_sees_clients() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    std::fs::write(&keys, OTHER).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let relay = Bound::bind(Settings {
        control: "[::]:0".parse().unwrap(),
        keys: Some(keys),
        tls: None,
        http: None,
        admin: Some(any),
        metrics: Some("[::]:0".parse().unwrap()),
        ports: ports(10).forever(),
        bind: "::".parse().unwrap(),
        allow_v1: false,
        register: None,
        authority: Authority::Keys,
        limits: Limits::default(),
    })
    .unwrap();
    let port = |address: SocketAddr| SocketAddr::new(any.ip(), address.port());
    let (control, admin, metrics) =
        (port(relay.control().unwrap()), port(relay.admin().unwrap()), port(relay.metrics().unwrap()));
    let drain = Drain::new();
    let of_relay = drain.clone();
    let running = tokio::spawn(async move { relay.run(of_relay).await.unwrap() });
    let client_drain = Drain::new();
    let options = client::Options {
        dial: Arc::new(Direct { host: "127.0.0.1".into(), port: control.port() }),
        key: "default".into(),
        secret: OTHER.into(),
        trust: Trust::Secret,
        local_host: None,
        tunnels: vec![Wanted { local_port: echo().await.0, kind: Kind::Tcp, port: 0, name: String::new() }],
    };
    let (mut rx, _running) = start(options, &client_drain);
    let public = opened(&mut rx).await;
    let mut visitor = TcpStream::connect(public).await.expect("[::] takes visitors by IPv4");
    visitor.write_all(b"x").await.unwrap();
    assert_eq!(timeout(PATIENCE, visitor.read_u8()).await.unwrap().unwrap(), b'x');
    let ask = async |address: SocketAddr, host: &str, method: &str, path: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    };
    let get = async |address, host: &str, path: &str| ask(address, host, "GET", path).await;
    // The kubelet uses the pod's IP address as Host.
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert!(get(metrics, "10.0.0.7:9090", path).await.starts_with("HTTP/1.1 200"), "{path}");
    }
    assert!(get(metrics, "10.0.0.7:9090", "/metrics").await.contains("adit_relay_tunnels 1"));
    assert!(get(metrics, "127.0.0.1", "/").await.starts_with("HTTP/1.1 404"), "no page of clients");
    assert!(get(admin, "127.0.0.1", "/").await.contains(&public.port().to_string()));
    let shown = get(admin, "127.0.0.1", "/api/v1/relay").await;
    assert!(shown.contains("\"visitors\":") && shown.contains(&public.port().to_string()), "{shown}");
    assert!(get(admin, "127.0.0.1", "/app.js").await.starts_with("HTTP/1.1 200"));
    for path in ["/", "/api/v1/relay"] {
        let page = get(admin, "127.0.0.1", path).await.to_ascii_lowercase();
        assert!(page.contains("content-security-policy: default-src 'none'") && page.contains("no-store"), "{page}");
    }
    assert!(get(metrics, "127.0.0.1", "/api/v1/relay").await.starts_with("HTTP/1.1 404"), "no data of clients");
    assert!(get(admin, "evil.example", "/api/v1/relay").await.starts_with("HTTP/1.1 403"));
    assert!(get(admin, "evil.example", "/").await.starts_with("HTTP/1.1 403"));
    // Monitors of uptime send HEAD.
    for (address, path) in [(metrics, "/healthz"), (metrics, "/metrics"), (admin, "/"), (admin, "/app.js")] {
        let head = ask(address, "127.0.0.1", "HEAD", path).await;
        assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
        let post = ask(address, "127.0.0.1", "POST", path).await.to_ascii_lowercase();
        assert!(post.starts_with("http/1.1 405") && post.contains("allow: get, head"), "{post}");
    }
    // While it finishes what is in progress, it is not ready.
    drain.start();
    for address in [admin, metrics] {
        assert!(get(address, "127.0.0.1", "/readyz").await.starts_with("HTTP/1.1 503"));
    }
    drop(visitor);
    client_drain.start();
    timeout(PATIENCE, running).await.expect("it ends").unwrap();
}
