//! Follows the ready pods of a target while a tunnel uses it, by watches instead of questions.

use std::{collections::BTreeMap, time::Duration};

use futures::TryStreamExt;
use kube::{
    Api, Resource,
    api::{ListParams, WatchEvent, WatchParams},
};
use serde::de::DeserializeOwned;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::{
    client::Cluster,
    objects::{EndpointSlice, Pod},
    pods,
    resolve::{ReadyPod, Source, ready_pods},
};
use crate::config::Namespace;

/// For how long an API server is asked to keep a watch. It ends some early.
const WATCH_SECONDS: u32 = 290;

/// Between attempts while the API server does not answer.
const PAUSES: [Duration; 6] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

/// The code of an answer that means that a version is too old (RFC 9110, section 15.5.11: Gone).
const GONE: u16 = 410;

/// Follows `source` and tells the ready pods each time that they have changed, until it is dropped, or until there is
/// no right to watch: then what is known stays, and the wire tells when a pod is gone.
pub async fn follow(
    cluster: &Cluster,
    namespace: &Namespace,
    source: Source,
    port_name: Option<&str>,
    container_port: u16,
    tell: impl Fn(Vec<ReadyPod>),
) {
    match source {
        Source::Service { name, pod, slices, version } => {
            let api: Api<EndpointSlice> = Api::namespaced(cluster.watches.clone(), &namespace.0);
            let labels = format!("kubernetes.io/service-name={name}");
            let (list, watch) = (ListParams::default().labels(&labels), WatchParams::default().labels(&labels));
            let tell = |slices: &BTreeMap<String, EndpointSlice>| {
                tell(ready_pods(slices.values(), port_name, pod.as_deref()).0);
            };
            objects(cluster, namespace, &api, &list, watch, (slices, version), tell).await;
        }
        Source::Pod { name, version } => {
            let api: Api<Pod> = Api::namespaced(cluster.watches.clone(), &namespace.0);
            let field = format!("metadata.name={name}");
            let (list, watch) = (ListParams::default().fields(&field), WatchParams::default().fields(&field));
            let tell = |all: &BTreeMap<String, Pod>| {
                let ready = all.values().filter(|pod| pods::is_ready(pod)).map(|pod| ReadyPod {
                    name: name.clone(),
                    uid: pod.metadata.uid.clone().unwrap_or_default(),
                    container_port,
                });
                tell(ready.collect());
            };
            objects(cluster, namespace, &api, &list, watch, (Vec::new(), version), tell).await;
        }
    }
}

/// Keeps a set of objects as the API server has them. `known`: what was listed, and its version.
async fn objects<K>(
    cluster: &Cluster,
    namespace: &Namespace,
    api: &Api<K>,
    list: &ListParams,
    watch: WatchParams,
    known: (Vec<K>, String),
    tell: impl Fn(&BTreeMap<String, K>),
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let watch = watch.timeout(WATCH_SECONDS).disable_bookmarks();
    let by_name = |objects: Vec<K>| -> BTreeMap<String, K> {
        objects.into_iter().filter_map(|object| Some((object.meta().name.clone()?, object))).collect()
    };
    let (mut all, mut version) = (by_name(known.0), known.1);
    let mut pauses = PAUSES.iter().copied();
    loop {
        // A token that has expired is renewed where that blocks nobody.
        let _ = cluster.auth_headers().await;
        let ended = match version.is_empty() {
            true => Ok(()),
            false => one_watch(api, &watch, &mut version, &mut all, &tell).await,
        };
        match ended {
            // It ends from time to time, and goes on where it ended.
            Ok(()) if !version.is_empty() => {
                pauses = PAUSES.iter().copied();
                sleep(PAUSES[0]).await;
                continue;
            }
            Ok(()) => {}
            Err(kube::Error::Api(status)) if status.code == 403 => {
                if cluster.tell_once_of_no_watch() {
                    warn!(context = %cluster.context, %namespace, reason = status.message, "no right to watch: pods are looked up for each new session");
                }
                return;
            }
            Err(error) => {
                debug!(context = %cluster.context, %error, "a watch ended");
                sleep(pauses.next().unwrap_or(PAUSES[PAUSES.len() - 1])).await;
            }
        }
        match cluster.ask("listing what is watched", namespace, api.list(list)).await {
            Ok(listed) => {
                version = listed.metadata.resource_version.clone().unwrap_or_default();
                all = by_name(listed.items);
                tell(&all);
            }
            Err(error) => {
                debug!(context = %cluster.context, ?error, "not listed");
                version.clear();
                sleep(pauses.next().unwrap_or(PAUSES[PAUSES.len() - 1])).await;
            }
        }
    }
}

fn take_version<K: Resource>(version: &mut String, object: &K) {
    if let Some(newer) = &object.meta().resource_version {
        version.clone_from(newer);
    }
}

/// Follows one watch to its end. An empty version means that everything has to be listed again.
async fn one_watch<K>(
    api: &Api<K>,
    params: &WatchParams,
    version: &mut String,
    all: &mut BTreeMap<String, K>,
    tell: &impl Fn(&BTreeMap<String, K>),
) -> kube::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let events = api.watch(params, version).await?;
    futures::pin_mut!(events);
    while let Some(event) = events.try_next().await? {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                take_version(version, &object);
                if let Some(name) = object.meta().name.clone() {
                    all.insert(name, object);
                }
            }
            WatchEvent::Deleted(object) => {
                take_version(version, &object);
                if let Some(name) = &object.meta().name {
                    all.remove(name);
                }
            }
            WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(status) if status.code == GONE => {
                version.clear();
                return Ok(());
            }
            WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
        }
        tell(all);
    }
    Ok(())
}
