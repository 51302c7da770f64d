//! Look-ups and errors against the demo API server.

use std::sync::Arc;

use adit::{
    config::{KubeconfigPaths, PortRef, Workload},
    demo::Demo,
    k8s::{client::Clusters, list, resolve::resolve},
    routing::ClusterId,
};

use crate::support::start_demo;

async fn cluster(demo: &Demo) -> Arc<adit::k8s::client::Cluster> {
    let kubeconfig = Arc::new(KubeconfigPaths(vec![demo.kubeconfig()]));
    Clusters::new(&[]).get(&ClusterId { kubeconfig, context: "demo".parse().unwrap() }).await.unwrap()
}

#[tokio::test]
async fn a_service_means_all_its_ready_pods() {
    let demo = start_demo().await;
    let (shop, web) = ("shop".parse().unwrap(), Workload::Service("web".parse().unwrap()));
    let found = resolve(&*cluster(&demo).await, &shop, &web, &PortRef::Name("http".parse().unwrap())).await.unwrap();
    let pods: Vec<_> = found.reachable.pods.iter().map(|pod| (pod.name.as_str(), pod.container_port)).collect();
    assert_eq!((found.port.number, &pods[..]), (80, &[("web-6d5f-a1", 8080), ("web-6d5f-b2", 8080)][..]));
}

#[tokio::test]
async fn a_pod_of_a_headless_service_is_reached_by_name() {
    let demo = start_demo().await;
    let workload = Workload::PodOfService { pod: "postgres-1".parse().unwrap(), service: "postgres".parse().unwrap() };
    let resolved = resolve(&*cluster(&demo).await, &"data".parse().unwrap(), &workload, &PortRef::Auto).await.unwrap();
    assert_eq!(
        (resolved.reachable.pods[0].name.as_str(), resolved.reachable.pods[0].container_port),
        ("postgres-1", 5432)
    );
}

#[tokio::test]
async fn only_services_that_can_be_reached_are_listed() {
    let demo = start_demo().await;
    let all = list::services(&*cluster(&demo).await, None).await.unwrap();
    let names: Vec<String> = all.iter().map(|service| format!("{}/{}", service.namespace, service.name)).collect();
    assert_eq!(names, ["data/postgres", "shop/broken", "shop/queue", "shop/tools", "shop/web"]);
}
