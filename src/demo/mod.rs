//! A Kubernetes API server with a little world behind it, in this process: for people without a cluster,
//! and for the tests.
//!
//! The other side of the wire: it shares nothing with the client side but [`crate::wire`].
//!
//! ```text
//! api_server -> world (objects, controllers)        what there is, and what becomes of it
//!      \-----> streams -> network -> workloads      into pods, as a node does it
//!                  \--> shell                       what exec runs
//! ```
//!
//! [`faults::Faults`] and [`world::World`] are how a test makes things happen.

pub mod access;
pub mod api_server;
pub mod controllers;
pub mod database;
pub mod faults;
pub mod kinds;
pub mod network;
pub mod objects;
pub mod process;
pub mod selector;
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

/// The version of the API server and the node. [`faults::Era`] says how old they behave.
pub const VERSION: &str = "v1.36.2";

/// A running demo cluster. Dropping it stops everything and removes its folder.
pub struct Demo {
    address: SocketAddr,
    folder: Folder,
    node: Arc<Node>,
    _end: DropGuard,
}

/// The world, and what is needed to run it.
pub struct Node {
    pub world: World,
    pub faults: Faults,
    pub tasks: Tasks,
    /// TLS settings of the site in the pods.
    site: TlsAcceptor,
}

impl Demo {
    /// Starts the API server on 127.0.0.1 with a free port, with the little world in it, and writes its kubeconfig.
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

    /// The API server's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A kubeconfig with the contexts `demo` and `demo-nobody`, in a temporary folder.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.kubeconfig()
    }

    /// How to make it misbehave.
    pub fn faults(&self) -> &Faults {
        &self.node.faults
    }

    /// The objects of the cluster.
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
