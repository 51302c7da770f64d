//! Services inside the cluster that lead to laptops: a relay that runs in a pod registers them, and Kubernetes is the only memory.
//!
//! A Service that is made has no selector, and one EndpointSlice that points at the relay's pod and the tunnel's port there. One that
//! exists is touched only where that was asked for: what it was is kept in an annotation, and is put back at the end. Both carry
//! who serves them, so that any relay puts away what a relay that is gone has left.

use std::{collections::HashSet, env, net::IpAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::telemetry::reasons;

/// On every Service that a relay serves.
const EXPOSED: &str = "adit/exposed";

/// `namespace/pod/uid` of the relay that serves it.
const RELAY: &str = "adit/relay";

/// What a Service was before it was replaced, JSON.
const ORIGINAL: &str = "adit/original";

/// Whose laptop it leads to.
const OWNER: &str = "adit/owner";

/// How often it is looked for what other relays have left, and how long a client may take to come back to this one.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
const GRACE: Duration = Duration::from_secs(60);

/// A Service that is to lead to a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Registration {
    pub namespace: String,
    pub service: String,
    /// The Service's port.
    pub port: u16,
    /// An existing Service may be put out of its place.
    pub replaces: bool,
    pub owner: String,
}

impl Registration {
    /// Reads `service.namespace:port`, as a client writes it.
    pub fn parse(text: &str, replaces: bool, owner: String) -> Option<Self> {
        let (name, port) = text.rsplit_once(':')?;
        let (service, namespace) = name.split_once('.')?;
        let is_label = crate::config::names::is_label;
        let port = port.parse().ok().filter(|port| *port > 0)?;
        (is_label(service) && is_label(namespace)).then(|| Self {
            namespace: namespace.to_owned(),
            service: service.to_owned(),
            port,
            replaces,
            owner,
        })
    }
}

/// Makes Services lead to tunnels of this relay.
pub trait Registrar: Send + Sync + 'static {
    /// # Errors
    /// In words: it exists and may not be replaced, somebody else serves it, a right is missing.
    fn register<'a>(&'a self, wanted: &'a Registration, target_port: u16) -> BoxFuture<'a, Result<(), String>>;

    /// Puts everything back as it was.
    fn unregister<'a>(&'a self, wanted: &'a Registration) -> BoxFuture<'a, ()>;
}

/// The pod that a relay runs in, as the downward API tells.
#[derive(Clone, Debug)]
struct Own {
    namespace: String,
    pod: String,
    uid: String,
    ip: IpAddr,
}

/// The registrar of a relay in a pod.
pub struct InCluster {
    client: Client,
    own: Own,
    /// Where Services may be made. None: in every namespace.
    namespace: Option<String>,
    live: std::sync::Mutex<HashSet<(String, String)>>,
}

impl InCluster {
    /// `namespace`: where Services may be made. None: in every one.
    ///
    /// # Errors
    /// In words: this is no pod, or it does not know who it is.
    pub fn new(namespace: Option<String>) -> Result<Arc<Self>, String> {
        let variable =
            |name: &str| env::var(name).map_err(|_| format!("${name} is not set: the chart sets it (expose.enabled)"));
        let own = Own {
            namespace: variable("POD_NAMESPACE")?,
            pod: variable("POD_NAME")?,
            uid: variable("POD_UID")?,
            ip: variable("POD_IP")?.parse().map_err(|_| "$POD_IP is not an address".to_owned())?,
        };
        let config =
            kube::Config::incluster().map_err(|error| format!("this is no pod with a service account: {error}"))?;
        let client = Client::try_from(config).map_err(|error| error.to_string())?;
        Ok(Arc::new(Self { client, own, namespace, live: Default::default() }))
    }

    fn api(&self, group: &str, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    fn services(&self, namespace: &str) -> Api<DynamicObject> {
        self.api("", "Service", Some(namespace))
    }

    fn slices(&self, namespace: &str) -> Api<DynamicObject> {
        self.api("discovery.k8s.io", "EndpointSlice", Some(namespace))
    }

    fn relay(&self) -> String {
        format!("{}/{}/{}", self.own.namespace, self.own.pod, self.own.uid)
    }

    /// Objects in the relay's own namespace go with its pod.
    fn owners(&self, namespace: &str) -> Value {
        match namespace == self.own.namespace {
            true => json!([{"apiVersion": "v1", "kind": "Pod", "name": self.own.pod, "uid": self.own.uid}]),
            false => json!([]),
        }
    }

    async fn try_register(&self, wanted: &Registration, target_port: u16) -> Result<(), String> {
        if let Some(own) = self.namespace.as_ref().filter(|own| **own != wanted.namespace) {
            return Err(format!("this relay makes Services in namespace {own} alone"));
        }
        let services = self.services(&wanted.namespace);
        let words = |error: kube::Error| reasons(&error);
        let found = services.get_opt(&wanted.service).await.map_err(words)?;
        let port_name = match &found {
            None => {
                let service = json!({
                    "apiVersion": "v1", "kind": "Service",
                    "metadata": {
                        "name": wanted.service, "namespace": wanted.namespace, "ownerReferences": self.owners(&wanted.namespace),
                        "labels": {EXPOSED: "true", "app.kubernetes.io/managed-by": "adit"},
                        "annotations": {RELAY: self.relay(), OWNER: wanted.owner}
                    },
                    "spec": {"ports": [{"name": "adit", "port": wanted.port, "targetPort": target_port, "protocol": "TCP"}]}
                });
                let service = serde_json::from_value(service).map_err(|error| error.to_string())?;
                services.create(&PostParams::default(), &service).await.map_err(words)?;
                "adit".to_owned()
            }
            Some(service) => self.take(service, wanted).await?,
        };
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": slice_name(&wanted.service), "namespace": wanted.namespace, "ownerReferences": self.owners(&wanted.namespace),
                "labels": {
                    EXPOSED: "true", "kubernetes.io/service-name": wanted.service, "endpointslice.kubernetes.io/managed-by": "adit"
                }
            },
            "addressType": if self.own.ip.is_ipv4() { "IPv4" } else { "IPv6" },
            "endpoints": [{
                "addresses": [self.own.ip.to_string()], "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "namespace": self.own.namespace, "name": self.own.pod, "uid": self.own.uid}
            }],
            "ports": [{"name": port_name, "port": target_port, "protocol": "TCP"}]
        });
        let slices = self.slices(&wanted.namespace);
        delete(&slices, &slice_name(&wanted.service)).await?;
        let slice = serde_json::from_value(slice).map_err(|error| error.to_string())?;
        slices.create(&PostParams::default(), &slice).await.map_err(words)?;
        Ok(())
    }

    /// Takes a Service that exists, and returns the name of its port.
    async fn take(&self, service: &DynamicObject, wanted: &Registration) -> Result<String, String> {
        let what = format!("Service {}/{}", wanted.namespace, wanted.service);
        let ports = service.data["spec"]["ports"].as_array().cloned().unwrap_or_default();
        let is_ours = service.labels().contains_key(EXPOSED);
        if !is_ours && !wanted.replaces {
            return Err(format!("{what} exists: --replace puts it aside until the end"));
        }
        if is_ours && self.serves(service).await {
            let owner = service.annotations().get(OWNER).map_or("somebody", String::as_str);
            return Err(format!("{what} leads to {owner} already"));
        }
        let port = ports.iter().find(|port| port["port"] == wanted.port);
        let Some(port) = port else {
            let all: Vec<String> = ports.iter().map(|port| port["port"].to_string()).collect();
            return Err(format!("{what} has no port {}; it has {}", wanted.port, all.join(", ")));
        };
        let mut change = json!({
            "metadata": {"labels": {EXPOSED: "true"}, "annotations": {RELAY: self.relay(), OWNER: wanted.owner}}
        });
        if !is_ours {
            let original = json!({"selector": service.data["spec"]["selector"]}).to_string();
            change["metadata"]["annotations"][ORIGINAL] = original.into();
            change["spec"] = json!({"selector": null});
        }
        let services = self.services(&wanted.namespace);
        let words = |error: kube::Error| reasons(&error);
        services.patch(&wanted.service, &PatchParams::default(), &Patch::Merge(&change)).await.map_err(words)?;
        // What the controller has made of the selector stays when that goes, and would be served beside ours.
        let of_service =
            format!("kubernetes.io/service-name={},endpointslice.kubernetes.io/managed-by!=adit", wanted.service);
        let slices = self.slices(&wanted.namespace);
        for slice in slices.list(&ListParams::default().labels(&of_service)).await.map_err(words)? {
            delete(&slices, &slice.name_any()).await?;
        }
        delete(&self.api("", "Endpoints", Some(&wanted.namespace)), &wanted.service).await?;
        Ok(port["name"].as_str().unwrap_or("").to_owned())
    }

    /// Returns whether the relay that a Service names serves it still.
    async fn serves(&self, service: &DynamicObject) -> bool {
        let Some(relay) = service.annotations().get(RELAY) else { return false };
        let mut parts = relay.split('/');
        let (Some(namespace), Some(pod), Some(uid)) = (parts.next(), parts.next(), parts.next()) else { return false };
        if uid == self.own.uid {
            let key = (service.namespace().unwrap_or_default(), service.name_any());
            return self.live.lock().expect("no panic while the lock is held").contains(&key);
        }
        match self.api("", "Pod", Some(namespace)).get_opt(pod).await {
            Ok(found) => found.is_some_and(|found| found.uid().as_deref() == Some(uid)),
            // Not to be said: it is left alone.
            Err(_) => true,
        }
    }

    /// Puts a Service back as it was, or away.
    async fn put_back(&self, namespace: &str, name: &str) -> Result<(), String> {
        let services = self.services(namespace);
        let words = |error: kube::Error| reasons(&error);
        let Some(service) = services.get_opt(name).await.map_err(words)? else { return Ok(()) };
        if !service.labels().contains_key(EXPOSED) {
            return Ok(());
        }
        delete(&self.slices(namespace), &slice_name(name)).await?;
        let Some(original) = service.annotations().get(ORIGINAL) else { return delete(&services, name).await };
        let original: Value = serde_json::from_str(original).map_err(|error| error.to_string())?;
        let change = json!({
            "metadata": {"labels": {EXPOSED: null}, "annotations": {RELAY: null, OWNER: null, ORIGINAL: null}},
            "spec": {"selector": original["selector"]}
        });
        services.patch(name, &PatchParams::default(), &Patch::Merge(&change)).await.map(drop).map_err(words)
    }

    /// Looks from time to time for what relays that are gone have left, and clients that did not come back. Does not end.
    pub async fn sweep(self: Arc<Self>) {
        let started = Instant::now();
        loop {
            let exposed =
                self.api("", "Service", self.namespace.as_deref()).list(&ListParams::default().labels(EXPOSED)).await;
            match exposed {
                Ok(exposed) => {
                    for service in exposed {
                        let is_own =
                            service.annotations().get(RELAY).is_some_and(|relay| relay.ends_with(&self.own.uid));
                        if (is_own && started.elapsed() < GRACE) || self.serves(&service).await {
                            continue;
                        }
                        let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
                        match self.put_back(&namespace, &name).await {
                            Ok(()) => info!(%namespace, %name, "a Service of a relay that is gone was put back"),
                            Err(error) => warn!(%namespace, %name, error, "a Service was not put back"),
                        }
                    }
                }
                Err(error) => warn!(error = reasons(&error), "Services are not swept"),
            }
            sleep(SWEEP_EVERY).await;
        }
    }
}

impl Registrar for InCluster {
    fn register<'a>(&'a self, wanted: &'a Registration, target_port: u16) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            self.try_register(wanted, target_port).await?;
            let key = (wanted.namespace.clone(), wanted.service.clone());
            self.live.lock().expect("no panic while the lock is held").insert(key);
            Ok(())
        })
    }

    fn unregister<'a>(&'a self, wanted: &'a Registration) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let key = (wanted.namespace.clone(), wanted.service.clone());
            self.live.lock().expect("no panic while the lock is held").remove(&key);
            if let Err(error) = self.put_back(&wanted.namespace, &wanted.service).await {
                warn!(namespace = wanted.namespace, service = wanted.service, error, "a Service was not put back yet");
            }
        })
    }
}

fn slice_name(service: &str) -> String {
    format!("{service}-adit")
}

async fn delete(api: &Api<DynamicObject>, name: &str) -> Result<(), String> {
    match api.delete(name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        deleted => deleted.map(drop).map_err(|error| reasons(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wanted_service_is_named_with_its_namespace_and_port() {
        let parse = |text: &str| Registration::parse(text, false, "ana".into());
        let wanted = parse("web.shop:80").unwrap();
        assert_eq!((wanted.service.as_str(), wanted.namespace.as_str(), wanted.port), ("web", "shop", 80));
        for text in ["web:80", "web.shop", "web.shop:0", "Web.shop:80", "web.sh.op:80", ".shop:80"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
