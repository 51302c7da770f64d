//! `adit expose`: a Service inside the cluster that leads to a port of this machine, through a relay in the cluster.

mod create;

use std::{io, path::PathBuf, process::ExitCode, sync::Arc, sync::Mutex};

use base64::{Engine, prelude::BASE64_STANDARD};
use futures::future::BoxFuture;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
};

use super::{
    Globals, local,
    place::Place,
    report::{CliError, print},
    server,
    up::{self, Signals},
};
use crate::{
    backend::Backends,
    config::{Namespace, PortRef, Workload},
    drain::Drain,
    io::BoxedIo,
    k8s::{client::Cluster, objects::Pod, pods},
    relay::{
        Kind,
        auth::{self, Key},
        client::{self, Dial, LocalEnd, Options, Purpose, Wanted},
        tls::Trust,
    },
    routing::{ClusterId, PodTarget, Target},
    telemetry,
    tunnel::Manager,
};

/// What finds the relays, and where their secret is.
const RELAYS: &str = "app.kubernetes.io/name=adit-relay";
const KEYS: &str = "adit/keys";
/// On a relay's pod: the namespace that it makes Services in, or `true` for all.
const EXPOSES: &str = "adit/exposes";

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  adit expose 3000:80 --as web.shop      # http://web.shop in the cluster is port 3000 here"
)]
pub struct Args {
    /// Local port, and the Service's port if it differs: 3000:80
    #[arg(value_name = "PORT[:PORT]")]
    port: String,
    /// The Service
    #[arg(long = "as", value_name = "SERVICE[.NAMESPACE]")]
    service: String,
    /// Take over an existing Service; it is restored on exit
    #[arg(long)]
    replace: bool,
    /// Namespace of the relay [default: all]
    #[arg(long, value_name = "NAME")]
    relay_namespace: Option<String>,
    /// Create a relay in the Service's namespace if there is none; it ends after a day
    #[arg(long, requires = "image")]
    create: bool,
    /// Image of adit for the relay that --create makes
    #[arg(long, value_name = "IMAGE", requires = "create")]
    image: Option<String>,
    /// Read the secret from this file [default: the Secret that the relay names]
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// The host of the local service [default: 127.0.0.1 and [::1], whichever answers]
    #[arg(long, value_name = "HOST")]
    local_host: Option<String>,
}

pub fn run(globals: &Globals, args: Args) -> Result<ExitCode, CliError> {
    telemetry::init(globals.format(), globals.verbose);
    up::raise_open_file_limit();
    up::run_to_end(serve(globals, args))
}

async fn serve(globals: &Globals, args: Args) -> Result<ExitCode, CliError> {
    let mut signals = Signals::new()?;
    let place = Place::of(globals)?;
    let cluster = place.cluster().await?;
    let Place { clusters, id, namespace, .. } = place;
    let context = id.context.clone();
    let (local_port, port) = local::ports(&args.port)?;
    let (service, namespace) = args.service.split_once('.').unwrap_or((&args.service, &namespace.0));
    let name = format!("{service}.{namespace}:{}", if port == 0 { local_port } else { port });
    let drain = Drain::new();
    let manager = Manager::new(Arc::new(Backends::new(clusters, None)), drain.clone());
    let relay_namespace = args.relay_namespace.map(Namespace);
    let for_namespace = Namespace(namespace.to_owned());
    let relay = match (find(&cluster, relay_namespace.as_ref(), &for_namespace, None).await?, &args.image) {
        (None, Some(image)) => {
            create::ensure(&cluster, &for_namespace, image).await?;
            find(&cluster, Some(&for_namespace), &for_namespace, None).await?
        }
        (found, _) => found,
    };
    let relay = relay.ok_or_else(|| no_relay(&cluster))?;
    let key = match &args.secret_file {
        Some(file) => server::keys(Some(file))?.remove(0),
        None => secret(&cluster, &relay).await?,
    };
    let kind = if args.replace { Kind::ReplacedService } else { Kind::Service };
    let dial = InCluster { id, cluster, manager, relay_namespace, for_namespace, pod: Mutex::new(relay.target) };
    let options = Options {
        dial: Arc::new(dial),
        key: key.name,
        secret: key.secret,
        trust: Trust::Secret,
        local_host: args.local_host.clone(),
        tunnels: vec![Wanted { local_port, kind, port: 0, name: name.clone() }],
    };
    let local_end = LocalEnd::new(args.local_host.as_deref(), local_port);
    let shown = format!("{name} in {context} -> {local_end}\n");
    let opened = move |_: &[client::Open]| {
        // Who does not listen any more misses nothing else.
        let _ = print(&shown);
    };
    local::serve(options, opened, &mut signals).await?;
    drain.finish(std::time::Duration::from_secs(1)).await;
    Ok(ExitCode::SUCCESS)
}

/// A relay that can be reached.
struct Relay {
    target: (Namespace, String),
    keys: Option<String>,
}

/// Looks for a ready relay that makes Services in `for_namespace`: in one namespace, or in all. Of several it is `before`, which
/// keeps what it was told, or any, so that clients are spread over them.
async fn find(
    cluster: &Cluster,
    namespace: Option<&Namespace>,
    for_namespace: &Namespace,
    before: Option<&(Namespace, String)>,
) -> Result<Option<Relay>, CliError> {
    let api: Api<Pod> = match namespace {
        Some(namespace) => Api::namespaced(cluster.client.clone(), &namespace.0),
        None => Api::all(cluster.client.clone()),
    };
    let listed = api.list(&ListParams::default().labels(RELAYS)).await;
    let listed = listed.map_err(|error| {
        CliError::new("the relay cannot be looked for")
            .cause(Some(telemetry::reasons(&error)))
            .hint(Some("where pods of all namespaces may not be listed, say which: --relay-namespace NAME"))
    })?;
    let exposes = |pod: &Pod| {
        let exposes = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(EXPOSES));
        exposes.is_some_and(|exposes| exposes == "true" || *exposes == for_namespace.0)
    };
    let ready = listed.into_iter().filter(|pod| pods::is_ready(pod) && exposes(pod));
    let mut relays: Vec<Relay> = ready
        .map(|pod| {
            let keys = pod.metadata.annotations.and_then(|mut annotations| annotations.remove(KEYS));
            let namespace = Namespace(pod.metadata.namespace.unwrap_or_default());
            Relay { target: (namespace, pod.metadata.name.unwrap_or_default()), keys }
        })
        .collect();
    if relays.is_empty() {
        return Ok(None);
    }
    let same = relays.iter().position(|relay| Some(&relay.target) == before);
    let any = || usize::from(auth::random::<1>().map_or(0, |[byte]| byte)) % relays.len();
    Ok(Some(relays.swap_remove(same.unwrap_or_else(any))))
}

fn no_relay(cluster: &Cluster) -> CliError {
    CliError::new(format!("no ready relay found in context {}", cluster.context)).hint(Some(
        "make one for all: helm install relay charts/adit -n relay --create-namespace --set expose.enabled=true; or one for \
         this namespace: --create --image IMAGE",
    ))
}

async fn secret(cluster: &Cluster, relay: &Relay) -> Result<Key, CliError> {
    let hint = Some("give it a copy of the secret: --secret-file FILE");
    let name =
        relay.keys.as_deref().ok_or_else(|| CliError::new("the relay does not say where its secret is").hint(hint))?;
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Secret"));
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), &relay.target.0.0, &resource);
    let secret = api.get(name).await.map_err(|error| {
        CliError::new(format!("Secret {}/{name} cannot be read", relay.target.0))
            .cause(Some(telemetry::reasons(&error)))
            .hint(hint)
    })?;
    let keys = secret.data["data"]["keys"].as_str().and_then(|keys| BASE64_STANDARD.decode(keys).ok());
    let keys = keys.and_then(|keys| String::from_utf8(keys).ok()).unwrap_or_default();
    Ok(auth::parse_keys(&keys).map_err(|problem| CliError::new(format!("Secret {name}: {problem}")))?.remove(0))
}

/// Reaches the relay's control port through a port-forward.
struct InCluster {
    id: ClusterId,
    cluster: Arc<Cluster>,
    manager: Manager,
    relay_namespace: Option<Namespace>,
    /// Where the Service is.
    for_namespace: Namespace,
    /// The relay that the control connection leads to.
    pod: Mutex<(Namespace, String)>,
}

impl Dial for InCluster {
    fn dial(&self, purpose: Purpose) -> BoxFuture<'_, io::Result<BoxedIo>> {
        Box::pin(async move {
            if purpose == Purpose::Control {
                // It may have moved.
                let before = self.pod.lock().expect("no panic while the lock is held").clone();
                let namespace = self.relay_namespace.as_ref();
                let found = find(&self.cluster, namespace, &self.for_namespace, Some(&before)).await;
                let found = found.map_err(io::Error::other)?;
                let relay = found.ok_or_else(|| io::Error::other(no_relay(&self.cluster)))?;
                *self.pod.lock().expect("no panic while the lock is held") = relay.target;
            }
            let (namespace, pod) = self.pod.lock().expect("no panic while the lock is held").clone();
            let (workload, port) = (Workload::Pod(pod), PortRef::Name("control".to_owned()));
            let target = PodTarget { cluster: self.id.clone(), namespace, workload, port, jump: None };
            let idle = std::time::Duration::from_secs(60);
            let lease = self.manager.acquire(&Target::Pods(Arc::new(target)), idle).await.map_err(io::Error::other)?;
            lease.connect(None).await.map_err(io::Error::other)
        })
    }

    fn name(&self) -> String {
        let (namespace, pod) = self.pod.lock().expect("no panic while the lock is held").clone();
        format!("{namespace}/{pod}")
    }

    fn host(&self) -> String {
        "adit-relay".to_owned()
    }
}
