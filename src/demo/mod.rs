//! A Kubernetes API server with a little world behind it, in this process: for people without a cluster,
//! and for the tests.
//!
//! The other side of the wire: it shares nothing with the client side but [`crate::wire`].

pub mod api_server;
pub mod exec;
pub mod faults;
pub mod objects;
pub mod streams;
pub mod table;
pub mod workloads;

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer};
use tokio::{io::DuplexStream, net::TcpListener, task::JoinHandle};

use self::{faults::Faults, objects::World, workloads::Workloads};

/// A running demo cluster. Dropping it stops the server and removes its folder.
pub struct Demo {
    address: SocketAddr,
    folder: PathBuf,
    node: Arc<Node>,
    server: JoinHandle<()>,
}

/// The world, the servers in its pods, and what goes wrong with them.
pub struct Node {
    pub world: World,
    pub faults: Faults,
    workloads: Workloads,
}

impl Node {
    /// Returns a connection to a port of a pod, or the text that a node gives.
    fn connect(&self, namespace: &str, pod: &str, port: u16) -> Result<DuplexStream, String> {
        if self.world.get("pods", namespace, pod).is_none() {
            return Err(format!("network namespace for sandbox \"{pod}\" is closed"));
        }
        if self.faults.resets(port) {
            return Err("read tcp4 127.0.0.1: connection reset by peer".to_owned());
        }
        if self.faults.stalls(port) {
            let (near, far) = tokio::io::duplex(64 * 1024);
            tokio::spawn(async move {
                let _held = far;
                std::future::pending::<()>().await;
            });
            return Ok(near);
        }
        let refused = || {
            format!(
                "failed to execute portforward in network namespace \"/run/netns/{pod}\": failed to connect to localhost:{port} inside \
                 namespace \"{pod}\", IPv4: dial tcp4 127.0.0.1:{port}: connect: connection refused"
            )
        };
        if self.faults.refuses(port) {
            return Err(refused());
        }
        self.workloads.connect(pod, port).ok_or_else(refused)
    }
}

impl Demo {
    /// Starts the API server on 127.0.0.1 with a free port, with the little world in it, and writes its kubeconfig.
    pub async fn start() -> io::Result<Self> {
        let authority = KeyPair::generate().map_err(io::Error::other)?;
        let mut params = CertificateParams::new(Vec::<String>::new()).map_err(io::Error::other)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&authority).map_err(io::Error::other)?.pem();
        let issuer = Issuer::new(params, authority);
        let node = Arc::new(Node {
            world: World::new(),
            faults: Faults::default(),
            workloads: Workloads::new(tls(&issuer, "tools.shop.svc", &[b"http/1.1"])?),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let token = KeyPair::generate()
            .map_err(io::Error::other)?
            .public_key_pem()
            .lines()
            .nth(1)
            .unwrap_or_default()
            .replace(['+', '/', '='], "x");
        let folder = make_folder()?;
        write_secret(&folder.join("kubeconfig"), &kubeconfig(address, &root, &token))?;
        let tls = tls(&issuer, "kubernetes", &[b"h2", b"http/1.1"])?;
        let server = tokio::spawn(api_server::serve(listener, tls, node.clone(), token));
        Ok(Self { address, folder, node, server })
    }

    /// The API server's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A kubeconfig with the contexts `demo` and `demo-nobody`, in a temporary folder.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// How to make it misbehave.
    pub fn faults(&self) -> &Faults {
        &self.node.faults
    }

    /// What is in it.
    pub fn world(&self) -> &World {
        &self.node.world
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.server.abort();
        // It is a temporary folder: the system removes what is left.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn make_folder() -> io::Result<PathBuf> {
    let base = std::env::temp_dir();
    for attempt in 0..100 {
        let folder = base.join(format!("adit-demo-{}-{attempt}", std::process::id()));
        match fs::create_dir(&folder) {
            Ok(()) => {
                fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
                return Ok(folder);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("no free folder in {}", base.display())))
}

fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    use io::Write;
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}

fn tls(issuer: &Issuer<'_, KeyPair>, name: &str, alpn: &[&[u8]]) -> io::Result<Arc<ServerConfig>> {
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let mut params = CertificateParams::new([name.to_owned(), "localhost".to_owned()]).map_err(io::Error::other)?;
    params.subject_alt_names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
    let certificate = params.signed_by(&key, issuer).map_err(io::Error::other)?;
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(io::Error::other)?;
    let mut config = builder
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .map_err(io::Error::other)?;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

fn kubeconfig(address: SocketAddr, root: &str, token: &str) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let authority = STANDARD.encode(root);
    let context = |name: &str, user: &str| {
        format!("- {{name: {name}, context: {{cluster: demo, user: {user}, namespace: {}}}}}\n", objects::NAMESPACE)
    };
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: demo\nclusters:\n- {{name: demo, cluster: {{server: \"https://{address}\", certificate-authority-data: {authority}}}}}\n\
         users:\n- {{name: demo, user: {{token: {token}}}}}\n- {{name: nobody, user: {{token: nobody}}}}\ncontexts:\n{}{}",
        context("demo", "demo"),
        context("demo-nobody", "nobody"),
    )
}
