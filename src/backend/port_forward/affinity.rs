//! Session affinity (`sessionAffinity: ClientIP`): the pod that clients stay with, also in the next session.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    config::{Namespace, Subdomain, Workload},
    k8s::endpoints::ReadyPod,
    routing::{ClusterId, PodTarget},
};

type Key = (ClusterId, Namespace, Workload);

/// Affinities of all Services that have one. The cluster sees all clients of adit as one machine, so they share one affinity.
#[derive(Default)]
pub struct Affinities(Mutex<HashMap<Key, Arc<Affinity>>>);

impl Affinities {
    /// Returns the affinity of a target's Service, for all its ports. `lasts`: how long it holds after the last connection.
    pub fn of(&self, target: &PodTarget, lasts: Duration) -> Arc<Affinity> {
        let mut all = self.0.lock().expect("no panic while the lock is held");
        all.retain(|_, affinity| Arc::strong_count(affinity) > 1 || affinity.pod().is_some());
        let key = (target.cluster.clone(), target.namespace.clone(), target.workload.clone());
        let affinity = all.entry(key).or_default().clone();
        affinity.lock().lasts = lasts;
        affinity
    }
}

/// The pod that the clients of one Service stay with.
#[derive(Default)]
pub struct Affinity(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    lasts: Duration,
    /// Name and UID of the pod, and the time of its last connection.
    pod: Option<(Subdomain, String, Instant)>,
}

impl Affinity {
    /// Returns the kept pod if it is one of `pods`, else the pod that `choose` returns, which is kept from now on.
    ///
    /// Decides under one lock, so that clients that arrive together get the same pod.
    pub fn keep<T>(
        &self,
        pods: impl Iterator<Item = T> + Clone,
        pod_of: impl Fn(&T) -> &ReadyPod,
        choose: impl FnOnce() -> Option<T>,
    ) -> Option<T> {
        let mut kept = self.lock();
        let found = pods.clone().find(|pod| kept.is(pod_of(pod))).or_else(choose)?;
        let pod = pod_of(&found);
        kept.pod = Some((pod.name.clone(), pod.uid.clone(), Instant::now()));
        Some(found)
    }

    /// Moves the kept pod to the front.
    pub fn sort(&self, pods: &mut [ReadyPod]) {
        let kept = self.lock();
        pods.sort_by_key(|pod| !kept.is(pod));
    }

    fn pod(&self) -> Option<Subdomain> {
        let kept = self.lock();
        kept.pod.as_ref().filter(|(.., last)| last.elapsed() < kept.lasts).map(|(name, ..)| name.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.0.lock().expect("no panic while the lock is held")
    }
}

impl Kept {
    fn is(&self, pod: &ReadyPod) -> bool {
        self.pod
            .as_ref()
            .is_some_and(|(name, uid, last)| last.elapsed() < self.lasts && *name == pod.name && *uid == pod.uid)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::config::PortRef;

    fn pod(name: &str, uid: &str) -> ReadyPod {
        ReadyPod { name: name.parse().unwrap(), uid: uid.into(), container_port: 80 }
    }

    fn target(port: u16) -> PodTarget {
        PodTarget {
            cluster: ClusterId { kubeconfig: Arc::default(), context: "c".parse().unwrap() },
            namespace: "shop".parse().unwrap(),
            workload: Workload::Service("web".parse().unwrap()),
            port: PortRef::number(port).unwrap(),
            jump: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_kept_for_its_time_after_each_connection_and_while_it_is_there() {
        let affinities = Affinities::default();
        let all = [pod("a", "1"), pod("b", "2")];
        let next = |pods: &[ReadyPod], otherwise: usize| {
            let affinity = affinities.of(&target(80), Duration::from_secs(60));
            affinity.keep(pods.iter(), |pod| pod, || pods.get(otherwise)).map(|pod| pod.name.clone())
        };
        assert_eq!(next(&all, 1).as_deref(), Some("b"));
        advance(Duration::from_secs(59)).await;
        assert_eq!(next(&all, 0).as_deref(), Some("b"), "also from one session to the next");
        advance(Duration::from_secs(59)).await;
        assert_eq!(next(&all, 0).as_deref(), Some("b"), "each connection counts");
        advance(Duration::from_secs(60)).await;
        assert_eq!(next(&all, 0).as_deref(), Some("a"), "its time is over");
        assert_eq!(next(&all[1..], 0).as_deref(), Some("b"), "the pod is gone");
        assert_eq!(next(&all, 0).as_deref(), Some("b"), "and the other one is kept");
        assert_eq!(next(&[pod("a", "1"), pod("b", "3")], 0).as_deref(), Some("a"), "another of the same name");
        assert_eq!(next(&[], 0), None);
    }

    #[tokio::test(start_paused = true)]
    async fn all_ports_of_a_service_have_one_pod_and_what_is_over_is_forgotten() {
        let affinities = Affinities::default();
        let all = [pod("a", "1"), pod("b", "2")];
        let keep = |port: u16, otherwise: usize| {
            let affinity = affinities.of(&target(port), Duration::from_secs(60));
            affinity.keep(all.iter(), |pod| pod, || all.get(otherwise)).map(|pod| pod.name.clone())
        };
        assert_eq!((keep(80, 1), keep(81, 0)), (Some("b".parse().unwrap()), Some("b".parse().unwrap())));
        let mut sorted = all.to_vec();
        affinities.of(&target(80), Duration::from_secs(60)).sort(&mut sorted);
        assert_eq!(sorted[0].name, "b");
        advance(Duration::from_secs(61)).await;
        let other = PodTarget { workload: Workload::Service("other".parse().unwrap()), ..target(80) };
        drop(affinities.of(&other, Duration::from_secs(60)));
        assert_eq!(affinities.0.lock().unwrap().len(), 1);
    }
}
