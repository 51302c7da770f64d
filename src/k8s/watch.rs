//! Follows the pods of a target by watches while a tunnel uses it.

mod backoff;

use std::{collections::BTreeMap, time::Duration};

use futures::TryStreamExt;
use kube::{
    Api, Resource,
    api::{ListParams, WatchEvent, WatchParams},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, warn};

use self::backoff::Backoff;
use super::{
    client::Cluster,
    endpoints::{self, PodPort, Reachable},
    objects::{EndpointSlice, Endpoints, Pod},
    resolve::{Source, of_slices},
};
use crate::config::Namespace;

/// Requested duration of a watch, in seconds. API servers end some earlier.
const WATCH_SECONDS: u32 = 290;

/// How late a watch may end. After that the connection counts as dead, because no changes would arrive.
const LATE: Duration = Duration::from_secs(10);

/// Timeout for the answer to a watch. Until it comes, changes of the pods are missed.
const ANSWER: Duration = Duration::from_secs(10);

/// Status for a version that is too old (RFC 9110, section 15.5.11: Gone).
const GONE: u16 = 410;

/// Follows `source` and calls `tell` after each change of the pods. Ends when it is dropped, or without the permission to
/// watch. The known pods then stay, and failed connections show that a pod is gone.
pub async fn follow(cluster: &Cluster, namespace: &Namespace, source: Source, tell: impl Fn(Reachable) + Sync) {
    match source {
        Source::Slices { service, slices, version, port } => {
            let of_service = Selection::labels(format!("kubernetes.io/service-name={service}"));
            let reader = BySlices { cluster, namespace, port };
            objects(cluster, namespace, &of_service, (slices, version), &reader, &tell).await;
        }
        Source::Endpoints { service, version, port, .. } => {
            let by_name = Selection::fields(format!("metadata.name={service}"));
            let reader = BySlices { cluster, namespace, port };
            objects::<Endpoints>(cluster, namespace, &by_name, (Vec::new(), version), &reader, &tell).await;
        }
        Source::Selected { selector, pods, publishes_not_ready, version, port } => {
            let reader = Selected { publishes_not_ready, port };
            objects(cluster, namespace, &Selection::labels(selector), (pods, version), &reader, &tell).await;
        }
        Source::Pod { name, version, container_port } => {
            let by_name = Selection::fields(format!("metadata.name={name}"));
            objects(cluster, namespace, &by_name, (Vec::new(), version), &Named { container_port }, &tell).await;
        }
    }
}

/// Computes the reachable pods from the watched objects.
trait Reader<K>: Sync {
    /// Returns `None` if the pods cannot be determined now. The next change tries again.
    fn read(&self, all: &BTreeMap<String, K>) -> impl Future<Output = Option<Reachable>> + Send;
}

struct BySlices<'a> {
    cluster: &'a Cluster,
    namespace: &'a Namespace,
    port: PodPort,
}

impl BySlices<'_> {
    async fn of(&self, slices: Vec<&EndpointSlice>) -> Option<Reachable> {
        match of_slices(self.cluster, self.namespace, slices, &self.port).await {
            Ok(reachable) => Some(reachable),
            Err(error) => {
                debug!(context = %self.cluster.context, %error, "pods not looked up");
                None
            }
        }
    }
}

impl Reader<EndpointSlice> for BySlices<'_> {
    async fn read(&self, all: &BTreeMap<String, EndpointSlice>) -> Option<Reachable> {
        self.of(all.values().collect()).await
    }
}

impl Reader<Endpoints> for BySlices<'_> {
    async fn read(&self, all: &BTreeMap<String, Endpoints>) -> Option<Reachable> {
        let slices: Vec<_> = all.values().cloned().flat_map(endpoints::as_slices).collect();
        self.of(slices.iter().collect()).await
    }
}

struct Selected {
    publishes_not_ready: bool,
    port: PodPort,
}

impl Reader<Pod> for Selected {
    async fn read(&self, all: &BTreeMap<String, Pod>) -> Option<Reachable> {
        Some(Reachable::ready(endpoints::selected(all.values(), &self.port, self.publishes_not_ready)))
    }
}

struct Named {
    container_port: u16,
}

impl Reader<Pod> for Named {
    async fn read(&self, all: &BTreeMap<String, Pod>) -> Option<Reachable> {
        Some(all.values().next().map(|pod| endpoints::named(pod, self.container_port)).unwrap_or_default())
    }
}

/// Selection of watched objects.
struct Selection {
    list: ListParams,
    watch: WatchParams,
}

impl Selection {
    fn labels(labels: String) -> Self {
        let watch = WatchParams::default().labels(&labels).timeout(WATCH_SECONDS);
        Self { list: ListParams::default().labels(&labels), watch }
    }

    fn fields(fields: String) -> Self {
        let watch = WatchParams::default().fields(&fields).timeout(WATCH_SECONDS);
        Self { list: ListParams::default().fields(&fields), watch }
    }
}

/// Keeps a copy of the objects of the API server. `known`: the listed objects, and their version.
async fn objects<K>(
    cluster: &Cluster,
    namespace: &Namespace,
    selection: &Selection,
    known: (Vec<K>, String),
    reader: &impl Reader<K>,
    tell: &(impl Fn(Reachable) + Sync),
) where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    let api: Api<K> = Api::namespaced(cluster.watches.clone(), namespace);
    let by_name = |objects: Vec<K>| -> BTreeMap<String, K> {
        objects.into_iter().filter_map(|object| Some((object.meta().name.clone()?, object))).collect()
    };
    let (mut all, mut version) = (by_name(known.0), known.1);
    let mut backoff = Backoff::default();
    loop {
        // A watch must not start a sign-in, because no client waits for it. It waits for one that a request started.
        cluster.user().signed_in().await;
        if version.is_empty() {
            match cluster.ask("listing what is watched", namespace, api.list(&selection.list)).await {
                Ok(listed) => {
                    version = listed.metadata.resource_version.clone().unwrap_or_default();
                    all = by_name(listed.items);
                    reader.read(&all).await.into_iter().for_each(tell);
                }
                Err(error) => {
                    debug!(context = %cluster.context, ?error, "not listed");
                    sleep(backoff.next()).await;
                    continue;
                }
            }
        }
        let started = Instant::now();
        match one_watch(&api, &selection.watch, &mut version, &mut all, reader, tell).await {
            Ok(Ended::InTime) => {}
            Ok(Ended::TooOld | Ended::Silent) => version.clear(),
            Err(kube::Error::Api(status)) if status.code == 403 => {
                if cluster.is_first(&format!("watch {} in {namespace}", K::plural(&()))) {
                    warn!(context = %cluster.context, %namespace, reason = status.message, "no permission to watch: pods are looked up for each new session");
                }
                return;
            }
            Err(error) => debug!(context = %cluster.context, %error, "a watch ended"),
        }
        sleep(backoff.after(started.elapsed())).await;
    }
}

/// How a watch ended without an error.
enum Ended {
    /// It can continue where it ended.
    InTime,
    /// The server no longer has the events after this version: list again.
    TooOld,
    /// It did not end in time, so changes may have been missed.
    Silent,
}

/// Follows one watch until it ends.
async fn one_watch<K>(
    api: &Api<K>,
    params: &WatchParams,
    version: &mut String,
    all: &mut BTreeMap<String, K>,
    reader: &impl Reader<K>,
    tell: &(impl Fn(Reachable) + Sync),
) -> kube::Result<Ended>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    let end = Instant::now() + Duration::from_secs(WATCH_SECONDS.into()) + LATE;
    let Ok(events) = timeout(ANSWER, api.watch(params, version)).await else { return Ok(Ended::Silent) };
    let events = match events {
        Err(kube::Error::Api(status)) if status.code == GONE => return Ok(Ended::TooOld),
        events => events?,
    };
    futures::pin_mut!(events);
    loop {
        let Ok(event) = timeout_at(end, events.try_next()).await else { return Ok(Ended::Silent) };
        match event? {
            None => return Ok(Ended::InTime),
            Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                take_version(version, object.meta().resource_version.as_ref());
                if let Some(name) = object.meta().name.clone() {
                    all.insert(name, object);
                }
            }
            Some(WatchEvent::Deleted(object)) => {
                take_version(version, object.meta().resource_version.as_ref());
                if let Some(name) = &object.meta().name {
                    all.remove(name);
                }
            }
            // A bookmark is not a change. It keeps the version of a quiet Service recent enough for the server.
            Some(WatchEvent::Bookmark(bookmark)) => {
                take_version(version, Some(&bookmark.metadata.resource_version));
                continue;
            }
            Some(WatchEvent::Error(status)) if status.code == GONE => return Ok(Ended::TooOld),
            Some(WatchEvent::Error(status)) => return Err(kube::Error::Api(status)),
        }
        reader.read(all).await.into_iter().for_each(tell);
    }
}

fn take_version(version: &mut String, newer: Option<&String>) {
    if let Some(newer) = newer {
        version.clone_from(newer);
    }
}
