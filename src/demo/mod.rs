//! A Kubernetes API server with a small cluster behind it, in this process: for people without a cluster, and for tests.
//!
//! It implements the other end of the protocols, and shares no code with adit's clients except [`crate::wire`].
//!
//! ```text
//! api_server -> world (objects, controllers)        the objects, and their changes
//!      \-----> streams -> network -> workloads      connections into pods, as on a node
//!                  \--> shell                       programs for exec
//! ```
//!
//! Tests control it with [`faults::Faults`] and [`world::World`].

pub mod access;
pub mod answer;
pub mod api_server;
pub mod controllers;
pub mod database;
pub mod faults;
pub mod kinds;
pub mod network;
pub mod objects;
pub mod process;
pub mod selector;
pub mod sessions;
pub mod shell;
pub mod streams;
pub mod table;
pub mod tasks;
pub mod upgrades;
pub mod workloads;
pub mod world;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::DropGuard;

use self::{
    access::{Authority, Folder, Tokens},
    faults::Faults,
    tasks::Tasks,
    world::World,
};

/// Reported version of the API server and the node. [`faults::Era`] chooses the behaviour.
pub const VERSION: &str = "v1.36.2";

/// A running demo cluster. Dropping it stops everything and deletes its folder.
pub struct Demo {
    address: SocketAddr,
    folder: Folder,
    node: Arc<Node>,
    _end: DropGuard,
}

/// The cluster's state, and the resources that it needs to run.
pub struct Node {
    pub world: World,
    pub faults: Faults,
    pub tasks: Tasks,
    /// TLS settings of the sites in pods.
    site: TlsAcceptor,
}

impl Demo {
    /// Starts the API server on a free port of 127.0.0.1, with the initial objects, and writes its kubeconfig.
    ///
    /// # Errors
    /// No port is free, or the kubeconfig cannot be written.
    pub async fn start() -> io::Result<Self> {
        let tasks = Tasks::default();
        let end = tasks.guard();
        let (authority, tokens, folder) = (Authority::new()?, Tokens::new()?, Folder::new()?);
        let node = Arc::new(Node::new(tasks.clone())?);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        folder.write_kubeconfig(address, &authority.certificate, &tokens)?;
        tasks.spawn(api_server::serve(listener, authority.server()?, node.clone(), tokens));
        let of_controllers = node.clone();
        tasks.spawn(async move { controllers::run(&of_controllers.world).await });
        Ok(Self { address, folder, node, _end: end })
    }

    /// Returns the API server's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the path of a kubeconfig with the contexts `demo` and `demo-nobody`, in a temporary folder.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.kubeconfig()
    }

    /// Returns the controls of injected faults.
    pub fn faults(&self) -> &Faults {
        &self.node.faults
    }

    /// Returns the objects of the cluster.
    pub fn world(&self) -> &World {
        &self.node.world
    }
}

impl Node {
    fn new(tasks: Tasks) -> io::Result<Self> {
        let world = World::new(tasks.child());
        objects::create(&world);
        let site = TlsAcceptor::from(access::site("tools.shop.svc")?);
        Ok(Self { world, faults: Faults::default(), tasks, site })
    }

    #[cfg(test)]
    fn for_tests() -> Arc<Self> {
        Arc::new(Self::new(Tasks::default()).expect("the system has random numbers"))
    }
}
