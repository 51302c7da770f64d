//! Finds the relays of a cluster by their labels, and connects to them through a port-forward.

use std::{
    collections::BTreeSet,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use futures::future::BoxFuture;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
};
use serde_json::json;

use crate::{
    cli::report::CliError,
    config::{Namespace, PortRef, Subdomain, Workload},
    io::BoxedIo,
    k8s::{
        ClusterError,
        client::{AskError, Cluster},
        objects::Pod,
        pods,
    },
    random,
    relay::{
        auth::{self, Key},
        client::{Dial, Purpose},
        expose::{
            ServiceName, inspect,
            kube::{Kind, Kube},
            review,
        },
    },
    routing::{ClusterId, PodTarget, Target},
    tunnel::Manager,
};

pub const KEYS: &str = "adit/keys";
/// Annotation of a relay's pod: `kubernetes`, if it reviews the tokens of its clients.
const AUTHORIZE: &str = "adit/authorize";

/// Time after which an unused port-forward to a relay closes.
const IDLE: Duration = Duration::from_secs(60);

/// A relay that can be reached.
pub struct Relay {
    pub target: (Namespace, Subdomain),
    /// Name of the Secret with its keys. `None`: its pod names none.
    pub keys: Option<String>,
    /// Whether it reviews the client's own token.
    pub reviews: bool,
    /// ServiceAccount of its pod.
    account: String,
    pub image: Option<String>,
}

/// Finds a ready relay that takes over `service`, in one namespace or in all. Of several, returns the one that already has other
/// ports or parts of the Service; else `before`, because it has the client's reservations; else any of the Service's own namespace;
/// else any, so that clients are spread.
///
/// # Errors
/// The pods cannot be listed, or the user has to choose between relays of several namespaces: the labels of a pod say nothing about
/// who runs it.
pub async fn find(
    cluster: &Cluster,
    namespace: Option<&Namespace>,
    service: &ServiceName,
    before: Option<&(Namespace, Subdomain)>,
) -> Result<Option<Relay>, CliError> {
    let listed = match pods(cluster, namespace).await {
        Ok(listed) => listed,
        Err(error) => {
            let hint = match &error {
                ClusterError::Forbidden { .. } if namespace.is_none() => Some(
                    "if you may not list the pods of all namespaces, name the relay's: --relay-namespace NAME".into(),
                ),
                error => error.hint(),
            };
            let error = CliError::new("cannot look for relays").cause(Some(&error)).cause(error.cause());
            return Err(error.hint(hint));
        }
    };
    let ready = listed.into_iter().filter(|pod| pods::is_ready(pod) && pods::relays_for(pod, &service.namespace));
    let mut relays: Vec<Relay> = ready.filter_map(Relay::of).collect();
    if relays.is_empty() {
        return Ok(None);
    }
    if relays.len() == 1 {
        return Ok(relays.pop());
    }
    let holder = inspect::relay_of(&Kube::new(cluster.client.clone()), service).await;
    let holder = holder.and_then(|(namespace, pod)| Some((namespace.parse().ok()?, pod.parse().ok()?)));
    let of = |wanted: Option<&(Namespace, Subdomain)>| relays.iter().position(|relay| Some(&relay.target) == wanted);
    if let Some(same) = of(holder.as_ref()).or_else(|| of(before)) {
        return Ok(Some(relays.swap_remove(same)));
    }
    if relays.iter().any(|relay| *relay.target.0 == *service.namespace) {
        relays.retain(|relay| *relay.target.0 == *service.namespace);
    }
    let namespaces: BTreeSet<&str> = relays.iter().map(|relay| &*relay.target.0).collect();
    if namespaces.len() > 1 {
        let all = namespaces.into_iter().collect::<Vec<_>>().join(", ");
        return Err(CliError::new(format!("relays for Service {service} run in several namespaces: {all}")).hint(
            Some("choose the namespace that you trust with the Service's traffic: --relay-namespace NAMESPACE"),
        ));
    }
    let any = || usize::from(random::bytes::<1>().map_or(0, |[byte]| byte)) % relays.len();
    Ok(Some(relays.swap_remove(any())))
}

/// Succeeds if the cluster vouches for a relay that asks for the user's token: its ServiceAccount may review tokens, which only an
/// administrator allows (`system:auth-delegator`). The relay's secret proves nothing here, because whoever creates a pod can create
/// a Secret beside it.
///
/// # Errors
/// The ServiceAccount may not, or the user may not ask.
pub async fn vouch(cluster: &Cluster, relay: &Relay) -> Result<(), CliError> {
    if !relay.reviews {
        return Ok(());
    }
    let ((namespace, pod), account) = (&relay.target, &relay.account);
    let (group, resource, _) = review::PERMISSIONS[0];
    let asked = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {},
        "spec": {
            "user": format!("system:serviceaccount:{namespace}:{account}"),
            "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{namespace}"), "system:authenticated"],
            "resourceAttributes": {"group": group, "verb": "create", "resource": resource}
        }
    });
    let cause = match Kube::new(cluster.client.clone()).create(Kind::SubjectAccessReview, "", &asked).await {
        Ok(answer) if answer["status"]["allowed"] == true && answer["status"]["denied"] != true => return Ok(()),
        Ok(_) => format!("its ServiceAccount {namespace}/{account} may not review tokens"),
        Err(error) => format!("cannot ask the cluster whether it may review tokens: {error}"),
    };
    Err(CliError::new(format!(
        "relay {namespace}/{pod} asks for your API token, and adit cannot verify that it may have it"
    ))
    .cause(Some(cause))
    .hint(Some(format!("if you trust whoever can create pods in that namespace: --relay-namespace {namespace}"))))
}

/// Returns the ready relays that take over Services, whatever their namespace.
///
/// # Errors
/// The pods cannot be listed.
pub async fn ready(cluster: &Cluster, namespace: Option<&Namespace>) -> Result<Vec<Relay>, ClusterError> {
    let exposes = |pod: &Pod| pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(pods::EXPOSES));
    let listed = pods(cluster, namespace).await?.into_iter();
    Ok(listed.filter(|pod| pods::is_ready(pod) && exposes(pod)).filter_map(Relay::of).collect())
}

/// Returns the pods of relays in one namespace, or in all.
async fn pods(cluster: &Cluster, namespace: Option<&Namespace>) -> Result<Vec<Pod>, ClusterError> {
    let api: Api<Pod> = match namespace {
        Some(namespace) => Api::namespaced(cluster.client.clone(), namespace),
        None => Api::all(cluster.client.clone()),
    };
    let relays = ListParams::default().labels(&format!("{}={}", pods::RELAY.0, pods::RELAY.1));
    match cluster.ask("looking for relays", namespace, api.list(&relays)).await {
        Ok(listed) => Ok(listed.items),
        Err(AskError::NotFound) => Ok(Vec::new()),
        Err(AskError::Failed(error)) => Err(error),
    }
}

impl Relay {
    fn of(pod: Pod) -> Option<Self> {
        let mut annotations = pod.metadata.annotations.unwrap_or_default();
        let keys = annotations.remove(KEYS);
        let reviews = annotations.get(AUTHORIZE).is_some_and(|by| by == "kubernetes");
        let target = (pod.metadata.namespace?.parse().ok()?, pod.metadata.name?.parse().ok()?);
        let spec = pod.spec.unwrap_or_default();
        let account = spec.service_account_name.unwrap_or_else(|| "default".to_owned());
        let image = spec.containers.into_iter().next().and_then(|container| container.image);
        Some(Self { target, keys, reviews, account, image })
    }
}

/// Returns the error of a Service for which there is no ready relay, with the relays that there are. A Service that the last relay
/// has not restored still routes to it.
pub async fn no_relay(cluster: &Cluster, namespace: Option<&Namespace>, service: &ServiceName) -> CliError {
    // Without a list, the hint still helps.
    let others: Vec<String> =
        pods(cluster, namespace).await.unwrap_or_default().iter().filter_map(|pod| not_for(pod, service)).collect();
    let cause = Some(others.join("; ")).filter(|others| !others.is_empty());
    let context = &cluster.context;
    let message = match inspect::relay_of(&Kube::new(cluster.client.clone()), service).await {
        Some((namespace, pod)) => format!(
            "no ready relay in context \"{context}\", and Service {service} is still taken over through relay {namespace}/{pod}: if that \
             is gone for good, 'adit expose restore {}.{}' restores the Service",
            service.name, service.namespace
        ),
        None => format!("no ready relay that takes over Services in context \"{context}\", for {service}"),
    };
    CliError::new(message).cause(cause).hint(Some(
        "install one for all: helm install relay charts/adit -n relay --create-namespace --set expose.enabled=true --set \
         image.repository=REGISTRY/adit; or create \
         one for this namespace: --create --image IMAGE",
    ))
}

/// Returns why a relay does not take over a Service. `None`: it is a relay of another kind.
fn not_for(pod: &Pod, service: &ServiceName) -> Option<String> {
    let exposes = pod.metadata.annotations.as_ref()?.get(pods::EXPOSES)?;
    let name = format!("{}/{}", pod.metadata.namespace.as_deref()?, pod.metadata.name.as_deref()?);
    Some(match pods::relays_for(pod, &service.namespace) {
        true => format!("relay {name} is not ready"),
        false => format!("relay {name} is for namespace {exposes}"),
    })
}

/// Reads the secret of a relay from the cluster.
///
/// # Errors
/// The Secret cannot be read, or has no key.
pub async fn secret(cluster: &Cluster, relay: &Relay) -> Result<Key, CliError> {
    let hint = Some("give it a copy of the secret: --secret-file FILE");
    let name = relay.keys.as_deref();
    let name = name.ok_or_else(|| CliError::new("the relay does not say where its secret is").hint(hint))?;
    let namespace = &relay.target.0;
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Secret"));
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), namespace, &resource);
    let failed = CliError::new(format!("cannot read Secret {namespace}/{name}")).hint(hint);
    let secret = match cluster.ask("reading the relay's secret", namespace, api.get(name)).await {
        Ok(secret) => secret,
        Err(AskError::NotFound) => return Err(failed.cause(Some("it does not exist"))),
        Err(AskError::Failed(error)) => return Err(failed.cause(Some(error))),
    };
    let keys = secret.data["data"]["keys"].as_str().and_then(|keys| BASE64_STANDARD.decode(keys).ok());
    let keys = keys.and_then(|keys| String::from_utf8(keys).ok()).unwrap_or_default();
    let mut keys = auth::parse_keys(&keys)
        .map_err(|problem| CliError::new(format!("Secret {namespace}/{name}: {problem}")).hint(hint))?;
    Ok(keys.swap_remove(0))
}

/// Dialler to a relay's control port through a port-forward.
pub struct InCluster {
    pub id: ClusterId,
    pub cluster: Arc<Cluster>,
    pub manager: Manager,
    /// Namespace of the relay that was found first. No other one may replace it.
    pub namespace: Namespace,
    /// Whether the user has chosen the relay, by its namespace or its secret.
    pub is_chosen: bool,
    pub service: ServiceName,
    /// Relay of the control connection.
    pub pod: Mutex<(Namespace, Subdomain)>,
    /// Whether that relay reviews the client's own token.
    pub reviews: AtomicBool,
}

impl Dial for InCluster {
    fn dial(&self, purpose: Purpose) -> BoxFuture<'_, io::Result<BoxedIo>> {
        Box::pin(async move {
            if purpose == Purpose::Control {
                // The relay's pod may have been replaced, so look for it again.
                let before = self.pod.lock().expect("no panic while the lock is held").clone();
                let found = find(&self.cluster, Some(&self.namespace), &self.service, Some(&before)).await;
                let found = found.map_err(io::Error::other)?;
                let Some(relay) = found else {
                    return Err(io::Error::other(no_relay(&self.cluster, Some(&self.namespace), &self.service).await));
                };
                if !self.is_chosen {
                    vouch(&self.cluster, &relay).await.map_err(io::Error::other)?;
                }
                *self.pod.lock().expect("no panic while the lock is held") = relay.target;
                self.reviews.store(relay.reviews, Ordering::Relaxed);
            }
            let (namespace, pod) = self.pod.lock().expect("no panic while the lock is held").clone();
            let port: PortRef = "control".parse().map_err(io::Error::other)?;
            let workload = Workload::Pod(pod);
            let target = PodTarget { cluster: self.id.clone(), namespace, workload, port, jump: None };
            let lease = self.manager.acquire(&Target::Pods(Arc::new(target)), IDLE).await.map_err(io::Error::other)?;
            lease.connect().await.map_err(io::Error::other)
        })
    }

    fn token(&self) -> BoxFuture<'_, io::Result<Option<String>>> {
        Box::pin(async move {
            match self.reviews.load(Ordering::Relaxed) {
                true => self.cluster.bearer_token().await.map_err(io::Error::other),
                false => Ok(None),
            }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_relay_of_another_namespace_is_named() {
        let pod = |exposes: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {
                "namespace": "relay", "name": "r-0", "labels": {pods::RELAY.0: pods::RELAY.1}, "annotations": {pods::EXPOSES: exposes}
            }}))
            .unwrap()
        };
        let service = ServiceName { namespace: "shop".to_owned(), name: "web".to_owned() };
        for (exposes, told) in [
            ("team", "relay relay/r-0 is for namespace team"),
            ("shop", "relay relay/r-0 is not ready"),
            ("true", "relay relay/r-0 is not ready"),
        ] {
            assert_eq!(not_for(&pod(exposes), &service).as_deref(), Some(told));
        }
        assert_eq!(not_for(&Pod::default(), &service), None);
    }
}
