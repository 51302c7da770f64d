//! Look-ups and errors against the demo API server.

use std::sync::Arc;

use adit::{
    config::{ContextName, KubeconfigPaths, Namespace, PortRef, Workload},
    demo::Demo,
    k8s::{client::Clusters, list, resolve::resolve},
    routing::ClusterId,
};

async fn cluster(demo: &Demo) -> Arc<adit::k8s::client::Cluster> {
    let kubeconfig = Arc::new(KubeconfigPaths(vec![demo.kubeconfig()]));
    Clusters::new(&[]).get(&ClusterId { kubeconfig, context: ContextName("demo".into()) }).await.unwrap()
}

#[tokio::test]
async fn sessions_are_spread_over_the_pods_of_a_service() {
    let demo = Demo::start().await.unwrap();
    let cluster = cluster(&demo).await;
    let (shop, web) = (Namespace("shop".into()), Workload::Service("web".into()));
    let mut pods = Vec::new();
    for spread in 0..4 {
        let resolved = resolve(&cluster, &shop, &web, &PortRef::Name("http".into()), spread).await.unwrap();
        assert_eq!((resolved.container_port, resolved.port.number), (8080, 80));
        pods.push(resolved.pod);
    }
    assert_eq!(pods, ["web-6d5f-a1", "web-6d5f-b2", "web-6d5f-a1", "web-6d5f-b2"]);
}

#[tokio::test]
async fn a_pod_of_a_headless_service_is_reached_by_name() {
    let demo = Demo::start().await.unwrap();
    let workload = Workload::PodOfService { pod: "postgres-1".into(), service: "postgres".into() };
    let resolved =
        resolve(&*cluster(&demo).await, &Namespace("data".into()), &workload, &PortRef::Auto, 0).await.unwrap();
    assert_eq!((resolved.pod.as_str(), resolved.container_port), ("postgres-1", 5432));
}

#[tokio::test]
async fn only_services_that_can_be_reached_are_listed() {
    let demo = Demo::start().await.unwrap();
    let all = list::services(&*cluster(&demo).await, None).await.unwrap();
    let names: Vec<String> = all.iter().map(|service| format!("{}/{}", service.namespace, service.name)).collect();
    assert_eq!(names, ["data/postgres", "shop/broken", "shop/queue", "shop/tools", "shop/web"]);
}
