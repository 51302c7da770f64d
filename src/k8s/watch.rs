//! Follows the pods of a target by watches while a tunnel uses it.

mod backoff;

use std::{collections::BTreeMap, time::Duration};

use futures::TryStreamExt;
use kube::{
    Api, Resource,
    api::{ListParams, WatchEvent, WatchParams},
};
use serde::de::DeserializeOwned;
use tokio::{
    select,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use self::backoff::Backoff;
use super::{
    client::Cluster,
    endpoints::{self, PodPort, Reachable, ReadyPod},
    objects::{EndpointSlice, Endpoints, Pod, Service, ServiceSpec},
    resolve::{KnownService, Source, of_slices},
};
use crate::config::Namespace;

/// Requested duration of a watch, in seconds. API servers end some earlier.
const WATCH_SECONDS: u32 = 290;

/// How late a watch may end. After that the connection counts as dead, because no changes would arrive.
const LATE: Duration = Duration::from_secs(10);

/// Pause between lists while a watch has no response head. Some gateways hold it back until the first event, and some
/// hold back the events too. As in client-go, the watch waits: HTTP/2 pings and TCP keep-alive find a dead connection.
const UNANSWERED: Duration = Duration::from_secs(10);

/// Status for a version that is too old (RFC 9110, section 15.5.11: Gone).
const GONE: u16 = 410;

/// Follows `source` and calls `tell` after each change of the pods. Ends when it is dropped. Without the permission to
/// watch, the known pods stay, failed connections show that a pod is gone, and it tries again after 30 s to 5 min.
pub async fn follow(cluster: &Cluster, namespace: &Namespace, source: Source, tell: impl Fn(Reachable) + Sync) {
    match source {
        Source::Slices { service, slices, version, port } => {
            let of_service = Selection::labels(format!("kubernetes.io/service-name={service}"));
            let reader = BySlices { cluster, namespace, port };
            objects(cluster, namespace, &of_service, (slices, version), &reader, &tell).await;
        }
        Source::Relay { of, service, slices, version, port, relay } => {
            let of_service = Selection::labels(format!("kubernetes.io/service-name={service}"));
            let reader = ByRelay { of: &of, port, relay };
            objects(cluster, &of, &of_service, (slices, version), &reader, &tell).await;
        }
        Source::Endpoints { service, version, port, .. } => {
            let by_name = Selection::fields(format!("metadata.name={service}"));
            let reader = BySlices { cluster, namespace, port };
            objects::<Endpoints, _>(cluster, namespace, &by_name, (Vec::new(), version), &reader, &tell).await;
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

/// Waits until a Service is gone, or is not as it was read.
pub async fn changed(cluster: &Cluster, service: KnownService) {
    let KnownService { namespace, name, version, spec } = service;
    let by_name = Selection::fields(format!("metadata.name={name}"));
    let changed = CancellationToken::new();
    let tell = |as_read: bool| {
        if !as_read {
            changed.cancel();
        }
    };
    changed
        .run_until_cancelled(objects(cluster, &namespace, &by_name, (Vec::new(), version), &AsRead { spec }, &tell))
        .await;
}

/// Computes something from the watched objects.
trait Reader<K>: Sync {
    type Read: Send;

    /// Returns `None` if it cannot be determined now.
    fn read(&self, all: &BTreeMap<String, K>) -> impl Future<Output = Option<Self::Read>> + Send;
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
    type Read = Reachable;

    async fn read(&self, all: &BTreeMap<String, EndpointSlice>) -> Option<Reachable> {
        self.of(all.values().collect()).await
    }
}

impl Reader<Endpoints> for BySlices<'_> {
    type Read = Reachable;

    async fn read(&self, all: &BTreeMap<String, Endpoints>) -> Option<Reachable> {
        let slices: Vec<_> = all.values().cloned().flat_map(endpoints::as_slices).collect();
        self.of(slices.iter().collect()).await
    }
}

struct ByRelay<'a> {
    of: &'a Namespace,
    port: PodPort,
    relay: (Namespace, ReadyPod),
}

impl Reader<EndpointSlice> for ByRelay<'_> {
    type Read = Reachable;

    /// Returns no pods at the end of the takeover: the next session looks up the target again.
    async fn read(&self, all: &BTreeMap<String, EndpointSlice>) -> Option<Reachable> {
        let relay = endpoints::of_relay(all.values(), &self.port, self.of).filter(|relay| *relay == self.relay);
        Some(Reachable::ready(relay.map(|(_, pod)| pod).into_iter().collect()))
    }
}

struct Selected {
    publishes_not_ready: bool,
    port: PodPort,
}

impl Reader<Pod> for Selected {
    type Read = Reachable;

    async fn read(&self, all: &BTreeMap<String, Pod>) -> Option<Reachable> {
        Some(Reachable::ready(endpoints::selected(all.values(), &self.port, self.publishes_not_ready)))
    }
}

struct Named {
    container_port: u16,
}

impl Reader<Pod> for Named {
    type Read = Reachable;

    async fn read(&self, all: &BTreeMap<String, Pod>) -> Option<Reachable> {
        Some(all.values().next().map(|pod| endpoints::named(pod, self.container_port)).unwrap_or_default())
    }
}

/// Compares a Service with what was read.
struct AsRead {
    spec: ServiceSpec,
}

impl Reader<Service> for AsRead {
    type Read = bool;

    async fn read(&self, all: &BTreeMap<String, Service>) -> Option<bool> {
        Some(all.values().next().is_some_and(|service| service.spec.as_ref() == Some(&self.spec)))
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

/// Copy of the watched objects.
struct Copied<K> {
    all: BTreeMap<String, K>,
    /// Whether they were not read since the last change.
    is_due: bool,
}

impl<K> Copied<K> {
    fn change(&mut self) -> &mut BTreeMap<String, K> {
        self.is_due = true;
        &mut self.all
    }

    /// Reads them. If that fails, or the future is dropped, it stays due.
    async fn read<R: Reader<K>>(&mut self, reader: &R, tell: &(impl Fn(R::Read) + Sync)) {
        if let Some(read) = reader.read(&self.all).await {
            self.is_due = false;
            tell(read);
        }
    }
}

/// Keeps a copy of the objects of the API server. `known`: the listed objects, and their version.
async fn objects<K, R: Reader<K>>(
    cluster: &Cluster,
    namespace: &Namespace,
    selection: &Selection,
    known: (Vec<K>, String),
    reader: &R,
    tell: &(impl Fn(R::Read) + Sync),
) where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    // This client starts no sign-in, for lists neither.
    let api: Api<K> = Api::namespaced(cluster.watches.clone(), namespace);
    let by_name = |objects: Vec<K>| -> BTreeMap<String, K> {
        objects.into_iter().filter_map(|object| Some((object.meta().name.clone()?, object))).collect()
    };
    let (mut copied, mut version) = (Copied { all: by_name(known.0), is_due: false }, known.1);
    let list = || async {
        match cluster.ask("listing what is watched", namespace, api.list(&selection.list)).await {
            Ok(listed) => Some((listed.metadata.resource_version.unwrap_or_default(), by_name(listed.items))),
            Err(error) => {
                debug!(context = %cluster.context, ?error, "not listed");
                None
            }
        }
    };
    let mut backoff = Backoff::default();
    loop {
        // A watch must not start a sign-in, because no client waits for it. It waits for one that a request started.
        cluster.user().signed_in().await;
        if version.is_empty() {
            let Some(listed) = list().await else {
                sleep(backoff.next()).await;
                continue;
            };
            (version, *copied.change()) = listed;
            copied.read(reader, tell).await;
        }
        let started = Instant::now();
        match one_watch(&api, &selection.watch, &mut version, &mut copied, &list, reader, tell).await {
            Ok(Ended::InTime) => {}
            Ok(Ended::TooOld | Ended::Silent) => version.clear(),
            Err(kube::Error::Api(status)) if status.code == 403 => {
                if cluster.is_first(&format!("watch {} in {namespace}", K::plural(&()))) {
                    warn!(context = %cluster.context, %namespace, reason = status.message, "no permission to watch: pods are looked up for each new session");
                }
                sleep(backoff.denied()).await;
                continue;
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

/// Follows one watch until it ends. Calls `list` now and then while the server does not answer the watch.
async fn one_watch<K, L, R: Reader<K>>(
    api: &Api<K>,
    params: &WatchParams,
    version: &mut String,
    copied: &mut Copied<K>,
    list: &impl Fn() -> L,
    reader: &R,
    tell: &(impl Fn(R::Read) + Sync),
) -> kube::Result<Ended>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    L: Future<Output = Option<(String, BTreeMap<String, K>)>>,
{
    let end = Instant::now() + Duration::from_secs(WATCH_SECONDS.into()) + LATE;
    let since = version.clone();
    let mut answer = std::pin::pin!(api.watch(params, &since));
    // The lists run beside the watch: it may own the lock of the connector, which they need (see `OneAtATime`).
    let lists = async {
        loop {
            sleep(UNANSWERED).await;
            if Instant::now() >= end {
                break;
            }
            // The version stays: the watch may still begin, with the events since then.
            if let Some((_, listed)) = list().await {
                *copied.change() = listed;
            }
            if copied.is_due {
                copied.read(reader, tell).await;
            }
        }
    };
    let events = select! {
        biased;
        events = &mut answer => events,
        () = lists => return Ok(Ended::Silent),
    };
    let events = match events {
        Err(kube::Error::Api(status)) if status.code == GONE => return Ok(Ended::TooOld),
        events => events?,
    };
    futures::pin_mut!(events);
    let mut retries = Backoff::default();
    loop {
        let event = select! {
            event = timeout_at(end, events.try_next()) => event,
            () = sleep(retries.next()), if copied.is_due => {
                copied.read(reader, tell).await;
                continue;
            }
        };
        let Ok(event) = event else { return Ok(Ended::Silent) };
        match event? {
            None => return Ok(Ended::InTime),
            Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                take_version(version, object.meta().resource_version.as_ref());
                if let Some(name) = object.meta().name.clone() {
                    copied.change().insert(name, object);
                }
            }
            Some(WatchEvent::Deleted(object)) => {
                take_version(version, object.meta().resource_version.as_ref());
                if let Some(name) = &object.meta().name {
                    copied.change().remove(name);
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
        copied.read(reader, tell).await;
        retries = Backoff::default();
    }
}

fn take_version(version: &mut String, newer: Option<&String>) {
    if let Some(newer) = newer {
        version.clone_from(newer);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use futures::StreamExt;
    use http::{Request, Response};
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use kube::client::Body;
    use serde_json::json;
    use tokio::time::timeout;

    use super::*;

    fn nothing() -> Copied<Pod> {
        Copied { all: BTreeMap::new(), is_due: false }
    }

    /// Fails the first times.
    struct Failing(AtomicUsize);

    impl Reader<Pod> for Failing {
        type Read = Reachable;

        async fn read(&self, _: &BTreeMap<String, Pod>) -> Option<Reachable> {
            let left = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            left.is_err().then(Reachable::default)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pods_that_cannot_be_looked_up_after_a_change_are_looked_up_again() {
        let server = tower::service_fn(|_: Request<Body>| async {
            let event = json!({"type": "MODIFIED", "object": {"metadata": {"name": "web-a1", "resourceVersion": "8"}}});
            let event = futures::stream::iter([Ok::<_, std::convert::Infallible>(format!("{event}\n"))]);
            let frames = event.chain(futures::stream::pending()).map_ok(|event| Frame::data(event.into()));
            Ok::<_, std::convert::Infallible>(Response::new(StreamBody::new(frames)))
        });
        let api: Api<Pod> = Api::default_namespaced(kube::Client::new(server, "shop"));
        let (mut version, mut copied, params) = ("7".to_owned(), nothing(), WatchParams::default());
        let (told, reader) = (AtomicUsize::new(0), Failing(AtomicUsize::new(3)));
        let tell = |_| {
            told.fetch_add(1, Ordering::Relaxed);
        };
        let list = || async { None };
        let watch = one_watch(&api, &params, &mut version, &mut copied, &list, &reader, &tell);
        assert!(timeout(Duration::from_secs(5), watch).await.is_err());
        assert_eq!(told.into_inner(), 1);
    }

    /// Follows one watch at an API server that sends the response head after `delay`, with the first event. Returns how
    /// the watch ended, its version, and the numbers of watches, lists and changes.
    async fn watched(delay: Duration) -> (Ended, String, [usize; 3]) {
        let [watches, lists, changes] = [const { AtomicUsize::new(0) }; 3].map(Arc::new);
        let count = |counter: &AtomicUsize| counter.fetch_add(1, Ordering::Relaxed);
        let asked = watches.clone();
        let server = tower::service_fn(move |_: Request<Body>| {
            count(&asked);
            async move {
                sleep(delay).await;
                let event =
                    json!({"type": "MODIFIED", "object": {"metadata": {"name": "web-a1", "resourceVersion": "8"}}})
                        .to_string()
                        + "\n";
                Ok::<_, std::convert::Infallible>(Response::new(Body::from(event.into_bytes())))
            }
        });
        let api: Api<Pod> = Api::default_namespaced(kube::Client::new(server, "shop"));
        let (mut version, mut copied) = ("7".to_owned(), nothing());
        let list = || async {
            count(&lists);
            Some(("9".to_owned(), BTreeMap::new()))
        };
        let tell = |_| {
            count(&changes);
        };
        let params = WatchParams::default().timeout(WATCH_SECONDS);
        let reader = Named { container_port: 80 };
        let ended = one_watch(&api, &params, &mut version, &mut copied, &list, &reader, &tell).await;
        (ended.unwrap(), version, [watches, lists, changes].map(|counter| counter.load(Ordering::Relaxed)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_whose_response_head_comes_with_its_first_event_is_followed() {
        let (ended, version, [watches, lists, changes]) = watched(Duration::from_secs(35)).await;
        assert!(matches!(ended, Ended::InTime));
        assert_eq!((version.as_str(), watches, lists, changes), ("8", 1, 3, 4), "each list, and the event");
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_uses_the_connection_that_the_watch_opens() {
        // As in `OneAtATime`: the watch has the lock while it connects, and the list waits for it.
        let connecting = Arc::new(tokio::sync::Mutex::new(()));
        let of_watch = connecting.clone();
        let server = tower::service_fn(move |_: Request<Body>| {
            let connecting = of_watch.clone();
            async move {
                let lock = connecting.lock().await;
                sleep(Duration::from_secs(12)).await;
                drop(lock);
                std::future::pending::<Result<Response<Body>, std::convert::Infallible>>().await
            }
        });
        let api: Api<Pod> = Api::default_namespaced(kube::Client::new(server, "shop"));
        let lists = AtomicUsize::new(0);
        let list = || async {
            drop(connecting.lock().await);
            lists.fetch_add(1, Ordering::Relaxed);
            Some(("9".to_owned(), BTreeMap::new()))
        };
        let (mut version, mut copied, params) = ("7".to_owned(), nothing(), WatchParams::default());
        let reader = Named { container_port: 80 };
        let watch = one_watch(&api, &params, &mut version, &mut copied, &list, &reader, &|_| {});
        assert!(timeout(Duration::from_secs(13), watch).await.is_err());
        assert_eq!(lists.into_inner(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_without_an_answer_ends_with_its_time() {
        let (ended, version, [watches, lists, _]) = watched(Duration::from_secs(600)).await;
        assert!(matches!(ended, Ended::Silent));
        assert_eq!((version.as_str(), watches, lists), ("7", 1, 29));
    }
}
