//! The pods behind a name: EndpointSlices of every origin, aliases, pods by name, and missing permissions.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use adit::{
    config::{KubeconfigPaths, PortRef, Workload},
    demo::Demo,
    k8s::{
        ClusterError,
        client::{Cluster, Clusters},
        list,
        resolve::{Resolution, resolve, resolve_pods},
    },
    routing::ClusterId,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{PATIENCE, TestApp, eventually, start_demo};

async fn cluster(demo: &Demo) -> Arc<Cluster> {
    let kubeconfig = Arc::new(KubeconfigPaths(vec![demo.kubeconfig()]));
    Clusters::new(&[]).get(&ClusterId { kubeconfig, context: "demo".parse().unwrap() }).await.unwrap()
}

async fn resolved(demo: &Demo, namespace: &str, workload: Workload, port: PortRef) -> Result<Resolution, ClusterError> {
    resolve(&*cluster(demo).await, &namespace.parse().unwrap(), &workload, &port).await
}

fn service(name: &str) -> Workload {
    Workload::Service(name.parse().unwrap())
}

fn pod_of(pod: &str, service: &str) -> Workload {
    Workload::PodOfService { pod: pod.parse().unwrap(), service: service.parse().unwrap() }
}

fn pods(found: Result<Resolution, ClusterError>) -> Vec<String> {
    let found = found.unwrap();
    found.reachable.pods.iter().map(|pod| format!("{}/{}:{}", found.namespace, pod.name, pod.container_port)).collect()
}

fn put_service(demo: &Demo, namespace: &str, name: &str, spec: Value) {
    demo.world().put("services", json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec}));
}

fn without_selector() -> Value {
    json!({"clusterIP": "10.96.1.1", "ports": [{"name": "http", "port": 80, "targetPort": 80, "protocol": "TCP"}]})
}

/// Adds an EndpointSlice as if written by hand.
fn put_slice(demo: &Demo, namespace: &str, service: &str, endpoints: Value) {
    let labels = json!({"kubernetes.io/service-name": service});
    let ports = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
    let metadata = json!({"namespace": namespace, "name": format!("{service}-by-hand"), "labels": labels});
    let slice = json!({"metadata": metadata, "addressType": "IPv4", "ports": ports, "endpoints": endpoints});
    demo.world().put("endpointslices", slice);
}

fn address_of(demo: &Demo, pod: &str) -> Value {
    demo.world().get("pods", "shop", pod).unwrap()["status"]["podIP"].clone()
}

fn endpoint(demo: &Demo, pod: &str) -> Value {
    let uid = demo.world().get("pods", "shop", pod).unwrap()["metadata"]["uid"].clone();
    json!([{
        "addresses": [address_of(demo, pod)], "conditions": {"ready": true},
        "targetRef": {"kind": "Pod", "namespace": "shop", "name": pod, "uid": uid}
    }])
}

fn set_ready(demo: &Demo, namespace: &str, pod: &str, is_ready: bool) {
    let mut object = (*demo.world().get("pods", namespace, pod).unwrap()).clone();
    let status = if is_ready { "True" } else { "False" };
    object["status"]["conditions"] = json!([{"type": "Ready", "status": status}]);
    object["status"]["containerStatuses"][0]["ready"] = json!(is_ready);
    demo.world().put("pods", object);
}

/// Returns the whole response to a GET.
async fn answer(app: &TestApp, host: &str) -> String {
    let mut stream = TcpStream::connect(app.http).await.unwrap();
    let request = format!("GET /whoami HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[tokio::test]
async fn without_a_selector_new_connections_follow_the_slice() {
    let app = TestApp::start("").await;
    put_service(&app.demo, "shop", "primary", without_selector());
    put_slice(&app.demo, "shop", "primary", endpoint(&app.demo, "web-6d5f-a1"));
    assert_eq!(app.get("primary.shop.localhost", "/whoami").await, (200, "web-6d5f-a1\n".into()));
    put_slice(&app.demo, "shop", "primary", endpoint(&app.demo, "web-6d5f-b2"));
    eventually("the other pod answers", || async {
        app.get("primary.shop.localhost", "/whoami").await == (200, "web-6d5f-b2\n".into())
    })
    .await;
    for _ in 0..5 {
        assert_eq!(app.get("primary.shop.localhost", "/whoami").await, (200, "web-6d5f-b2\n".into()));
    }
    app.finish().await;
}

#[tokio::test]
async fn a_slice_cannot_lead_out_of_its_namespace() {
    let demo = start_demo().await;
    put_service(&demo, "shop", "primary", without_selector());
    let mut by_hand = endpoint(&demo, "web-6d5f-a1");
    for name in ["../../data/pods/postgres-0", "web-6d5f-b2/../../x", "web?x=", "", "Web"] {
        by_hand[0]["targetRef"]["name"] = json!(name);
        put_slice(&demo, "shop", "primary", by_hand.clone());
        let found = resolved(&demo, "shop", service("primary"), PortRef::Auto).await;
        // The address belongs to a pod, which adit finds by it.
        assert_eq!(pods(found), ["shop/web-6d5f-a1:8080"], "{name:?}");
    }
}

#[tokio::test]
async fn a_service_without_a_selector_is_listed_where_its_slices_name_pods() {
    let demo = start_demo().await;
    put_service(&demo, "shop", "primary", without_selector());
    put_slice(&demo, "shop", "primary", endpoint(&demo, "web-6d5f-a1"));
    let names = async || -> Vec<String> {
        let all = list::services(&*cluster(&demo).await, Some(&"shop".parse().unwrap())).await.unwrap();
        all.into_iter().map(|service| service.name.into()).collect()
    };
    assert_eq!(names().await, ["broken", "primary", "queue", "tools", "web"]);
    demo.faults().forbid("list", "endpointslices", true);
    assert_eq!(names().await, ["broken", "queue", "tools", "web"]);
}

#[tokio::test]
async fn an_address_without_a_target_is_a_pod_where_one_has_it() {
    let app = TestApp::start("").await;
    put_service(&app.demo, "shop", "by-address", without_selector());
    let at = |pod: &str| json!([{"addresses": [address_of(&app.demo, pod)]}, {"addresses": ["192.0.2.9"]}]);
    put_slice(&app.demo, "shop", "by-address", at("web-6d5f-a1"));
    assert_eq!(app.get("by-address.shop.localhost", "/whoami").await, (200, "web-6d5f-a1\n".into()));
    put_slice(&app.demo, "shop", "by-address", at("web-6d5f-b2"));
    eventually("the other pod answers", || async {
        app.get("by-address.shop.localhost", "/whoami").await == (200, "web-6d5f-b2\n".into())
    })
    .await;
    app.finish().await;
}

#[tokio::test]
async fn an_address_outside_of_the_pods_is_an_error_that_says_how_it_is_reached() {
    let demo = start_demo().await;
    let error = resolved(&demo, "shop", service("mainframe"), PortRef::Auto).await.unwrap_err();
    assert_eq!(error.code().as_str(), "unsupported");
    assert!(error.to_string().contains("192.0.2.7"), "{error}");
    let hint = error.hint().unwrap();
    assert!(hint.contains("via") && hint.contains("tcp.k8s.jump"), "{hint}");
}

/// Adds a pod `relay/relay-0` that is a relay for `exposes`. Its container is that of web-6d5f-a1, because the UID is.
fn put_relay(demo: &Demo, exposes: Option<&str>) {
    demo.world().put("namespaces", json!({"metadata": {"name": "relay"}}));
    let mut pod = (*demo.world().get("pods", "shop", "web-6d5f-a1").unwrap()).clone();
    let annotations = exposes.map(|exposes| json!({"adit/exposes": exposes}));
    pod["metadata"] = json!({
        "namespace": "relay", "name": "relay-0", "uid": pod["metadata"]["uid"], "annotations": annotations,
        "labels": {"app.kubernetes.io/name": "adit-relay"}
    });
    pod["status"]["podIP"] = json!("10.244.9.9");
    demo.world().put("pods", pod);
}

/// Adds the slice that a relay writes during a takeover. `is_taken`: whether it still serves.
fn put_taken(demo: &Demo, service: &str, is_taken: bool) {
    let metadata = json!({
        "namespace": "shop", "name": format!("{service}-adit"),
        "labels": {"kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": "adit"}
    });
    let target = json!({"kind": "Pod", "namespace": "relay", "name": "relay-0"});
    let endpoints = json!([{"addresses": ["10.244.9.9"], "conditions": {"ready": is_taken}, "targetRef": target}]);
    let ports = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
    let slice = json!({"metadata": metadata, "addressType": "IPv4", "ports": ports, "endpoints": endpoints});
    demo.world().put("endpointslices", slice);
}

#[tokio::test]
async fn a_service_that_is_taken_over_means_the_relay_of_another_namespace() {
    let app = TestApp::start("").await;
    put_service(&app.demo, "shop", "primary", without_selector());
    put_relay(&app.demo, Some("true"));
    put_taken(&app.demo, "primary", true);
    assert_eq!(app.get("primary.shop.localhost", "/whoami").await, (200, "web-6d5f-a1\n".into()));
    put_taken(&app.demo, "primary", false);
    put_slice(&app.demo, "shop", "primary", endpoint(&app.demo, "web-6d5f-b2"));
    eventually("the pods answer at the end of the takeover", || async {
        app.get("primary.shop.localhost", "/whoami").await == (200, "web-6d5f-b2\n".into())
    })
    .await;
    // The slice alone says that the tunnel to the pods leads to the wrong place now.
    app.demo.faults().forbid("list", "pods", true);
    put_taken(&app.demo, "primary", true);
    put_slice(&app.demo, "shop", "primary", json!([]));
    eventually("the relay answers again", || async {
        app.get("primary.shop.localhost", "/whoami").await == (200, "web-6d5f-a1\n".into())
    })
    .await;
    app.finish().await;
}

/// Changes Service shop/web as a takeover does.
fn mark_taken(demo: &Demo) {
    let mut service = (*demo.world().get("services", "shop", "web").unwrap()).clone();
    let taken = json!({"port": 80, "targetPort": "http", "owner": "anna (192.0.2.5)", "since": "2026-11-30T08:00:00Z"});
    service["metadata"]["annotations"] =
        json!({"adit/takeover": json!({"relay": "relay/relay-0/1/2", "ports": [taken]}).to_string()});
    service["spec"]["ports"][0]["targetPort"] = json!("adit-80");
    demo.world().put("services", service);
}

#[tokio::test]
async fn a_pod_keeps_its_port_while_its_service_is_taken_over() {
    let demo = start_demo().await;
    mark_taken(&demo);
    for port in [PortRef::Auto, PortRef::number(80).unwrap(), PortRef::Name("http".parse().unwrap())] {
        let found = resolved(&demo, "shop", pod_of("web-6d5f-a1", "web"), port.clone()).await;
        assert_eq!(pods(found), ["shop/web-6d5f-a1:8080"], "{port:?}");
    }
}

#[tokio::test]
async fn a_takeover_whose_relay_cannot_be_read_is_named() {
    let demo = start_demo().await;
    mark_taken(&demo);
    // With this permission, a missing relay is an error of its own.
    demo.faults().forbid("get", "pods", true);
    eventually("the pods leave the port", || async {
        let Err(error) = resolved(&demo, "shop", service("web"), PortRef::Auto).await else { return false };
        let cause = error.cause().unwrap();
        assert_eq!(
            cause, "port 80 is taken over by anna (192.0.2.5) since 2026-11-30T08:00:00Z, through relay/relay-0, and adit finds no relay that serves it",
            "{error}"
        );
        let hint = error.hint().unwrap();
        assert!(hint.starts_with("if its relay is gone: adit --context demo ") && hint.ends_with(" expose restore web.shop"), "{hint}");
        true
    })
    .await;
}

#[tokio::test]
async fn a_target_port_that_is_the_name_of_no_port_of_the_pods_is_an_error_at_once() {
    let app = TestApp::start("").await;
    let ports = json!([{"name": "http", "port": 80, "targetPort": "htpp", "protocol": "TCP"}]);
    put_service(
        &app.demo,
        "shop",
        "typo",
        json!({"clusterIP": "10.96.1.2", "selector": {"app": "web"}, "ports": ports}),
    );
    eventually("it has a slice", || async {
        let (slices, _) = app.demo.world().list("endpointslices", Some("shop"));
        slices.iter().any(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "typo")
    })
    .await;
    let says = r#"targetPort "htpp" is the name of no port of its pods"#;
    for (forbidden, wanted) in
        [("", "; they declare 8080 (http)"), ("pods", ""), ("endpointslices", "; they declare 8080")]
    {
        app.demo.faults().forbid("list", forbidden, true);
        let found = resolved(&app.demo, "shop", service("typo"), PortRef::Auto).await.unwrap_err();
        app.demo.faults().forbid("list", forbidden, false);
        assert!(found.to_string().contains(&format!("{says}{wanted}")), "{forbidden}: {found}");
    }
    let started = Instant::now();
    let (status, body) = app.get("typo.shop.localhost", "/").await;
    assert!(status == 404 && body.contains("edit service typo"), "{status} {body}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    // A pod that starts has the port: the others are replaced.
    let mut pod = (*app.demo.world().get("pods", "shop", "web-6d5f-b2").unwrap()).clone();
    pod["spec"]["containers"][0]["ports"][0]["name"] = json!("htpp");
    app.demo.world().put("pods", pod);
    set_ready(&app.demo, "shop", "web-6d5f-b2", false);
    app.demo.faults().forbid("list", "endpointslices", true);
    let error = resolved(&app.demo, "shop", service("typo"), PortRef::Auto).await.unwrap_err();
    assert_eq!(error.code().as_str(), "not-ready", "{error}");
    app.finish().await;
}

#[tokio::test]
async fn a_takeover_has_its_owner_and_an_error_if_its_relay_is_gone() {
    let demo = start_demo().await;
    put_relay(&demo, Some("true"));
    put_taken(&demo, "primary", true);
    let take = |uid: &str| {
        let ports = json!([{"port": 80, "targetPort": 80, "owner": "ana", "since": "2026-01-01T00:00:00Z"}]);
        let record = json!({"relay": format!("relay/relay-0/{uid}/1"), "ports": ports}).to_string();
        let metadata = json!({"namespace": "shop", "name": "primary", "annotations": {"adit/takeover": record}});
        demo.world().put("services", json!({"metadata": metadata, "spec": without_selector()}));
    };
    let says = "port 80 is taken over by ana since 2026-01-01T00:00:00Z, through relay/relay-0";
    take(demo.world().get("pods", "relay", "relay-0").unwrap()["metadata"]["uid"].as_str().unwrap());
    let found = resolved(&demo, "shop", service("primary"), PortRef::Auto).await.unwrap();
    assert_eq!(found.takeover.unwrap().to_string(), says);
    take("of-a-former-pod");
    let error = resolved(&demo, "shop", service("primary"), PortRef::Auto).await.unwrap_err();
    assert_eq!(error.cause().unwrap(), format!("{says}, and this relay is gone"));
    let hint = error.hint().unwrap();
    assert!(
        hint.starts_with("adit --context demo --kubeconfig ") && hint.ends_with(" expose restore primary.shop"),
        "{hint}"
    );
}

#[tokio::test]
async fn a_pod_that_is_no_relay_for_the_namespace_is_none() {
    for exposes in [None, Some("data"), Some("")] {
        let demo = start_demo().await;
        put_service(&demo, "shop", "primary", without_selector());
        put_relay(&demo, exposes);
        put_taken(&demo, "primary", true);
        let error = resolved(&demo, "shop", service("primary"), PortRef::Auto).await.unwrap_err();
        assert!(error.to_string().contains("outside of the pods of namespace shop"), "{exposes:?}: {error}");
    }
}

#[tokio::test]
async fn an_endpoints_object_counts_where_there_are_no_slices() {
    let demo = start_demo().await;
    put_service(&demo, "shop", "old", without_selector());
    let address = json!({"ip": address_of(&demo, "web-6d5f-a1"), "targetRef": {"kind": "Pod", "name": "web-6d5f-a1", "uid": "u"}});
    let subsets = json!([{"addresses": [address], "ports": [{"name": "http", "port": 8080}]}]);
    demo.world().put("endpoints", json!({"metadata": {"namespace": "shop", "name": "old"}, "subsets": subsets}));
    let found = resolved(&demo, "shop", service("old"), PortRef::number(80).unwrap()).await;
    assert_eq!(pods(found), ["shop/web-6d5f-a1:8080"]);
    let error = resolved(&demo, "shop", service("legacy"), PortRef::Auto).await.unwrap_err();
    assert!(error.to_string().contains("no selector and no EndpointSlices"), "{error}");
}

#[tokio::test]
async fn an_external_name_of_this_cluster_is_followed() {
    let app = TestApp::start("").await;
    let external = |to: &str| json!({"type": "ExternalName", "externalName": to});
    put_service(&app.demo, "default", "shop", external("web.shop.svc.cluster.local"));
    put_service(&app.demo, "data", "far", external("shop.default.svc"));
    put_service(&app.demo, "data", "first", external("postgres-0.postgres.data.svc.cluster.local."));
    for (host, wanted) in
        [("shop.default.localhost", 200), ("80.far.data.localhost", 200), ("81.far.data.localhost", 404)]
    {
        let (status, body) = app.get(host, "/whoami").await;
        assert_eq!(status, wanted, "{host}: {body}");
        assert!(status != 200 || body.starts_with("web-6d5f-"), "{host}: {body}");
    }
    let found = resolved(&app.demo, "data", service("first"), PortRef::Auto).await;
    assert_eq!(pods(found), ["data/postgres-0:5432"]);
    // Where the Service has no obvious port, that of the ExternalName counts.
    let ports =
        json!([{"name": "a", "port": 7000, "targetPort": 7000}, {"name": "b", "port": 7001, "targetPort": 7001}]);
    put_service(&app.demo, "shop", "pair", json!({"selector": {"app": "tools"}, "ports": ports}));
    let mut spec = external("pair.shop.svc");
    put_service(&app.demo, "data", "either", spec.clone());
    let error = resolved(&app.demo, "data", service("either"), PortRef::Auto).await.unwrap_err();
    assert!(matches!(error, ClusterError::ChoosePort { .. }), "{error}");
    spec["ports"] = json!([{"port": 7001}]);
    put_service(&app.demo, "data", "one", spec);
    for wanted in [PortRef::Auto, PortRef::Https] {
        assert_eq!(pods(resolved(&app.demo, "data", service("one"), wanted).await), ["shop/tools-0:7001"]);
    }
    // Its tunnel is open.
    put_service(&app.demo, "default", "shop", external("gone.shop.svc"));
    eventually("the tunnel follows", || async { app.get("shop.default.localhost", "/whoami").await.0 == 404 }).await;
    put_service(&app.demo, "data", "a", external("b.data.svc.cluster.local"));
    put_service(&app.demo, "data", "b", external("a.data.svc.cluster.local"));
    let error = resolved(&app.demo, "data", service("a"), PortRef::Auto).await.unwrap_err();
    assert!(error.to_string().contains("is a loop"), "{error}");
    let error = resolved(&app.demo, "shop", service("payments"), PortRef::Auto).await.unwrap_err();
    assert!(error.to_string().contains("ExternalName for api.example.com"), "{error}");
    app.finish().await;
}

#[tokio::test]
async fn a_named_pod_of_a_service_has_every_port() {
    let demo = start_demo().await;
    for (port, wanted) in [
        (PortRef::Auto, "data/postgres-1:5432"),
        (PortRef::number(5432).unwrap(), "data/postgres-1:5432"),
        (PortRef::Name("postgres".parse().unwrap()), "data/postgres-1:5432"),
        (PortRef::number(9187).unwrap(), "data/postgres-1:9187"),
    ] {
        let found = resolved(&demo, "data", pod_of("postgres-1", "postgres"), port.clone()).await;
        assert_eq!(pods(found), [wanted], "{port:?}");
    }
    let found = resolved(&demo, "shop", pod_of("web-6d5f-a1", "web"), PortRef::number(80).unwrap()).await;
    assert_eq!(pods(found), ["shop/web-6d5f-a1:8080"], "a port of the Service means what it means there");
    let found = resolved(&demo, "shop", pod_of("tools-0", "queue"), PortRef::number(8081).unwrap()).await;
    assert_eq!(pods(found), ["shop/tools-0:8081"], "a port that only the pod declares");
    let wrong = resolved(&demo, "shop", pod_of("tools-0", "queue"), PortRef::number(9999).unwrap()).await;
    assert_eq!(wrong.unwrap_err().code().as_str(), "no-such-port", "and one that nobody does");
    let wrong = resolved(&demo, "data", pod_of("postgres-1", "postgres"), PortRef::Name("http".parse().unwrap())).await;
    assert_eq!(wrong.unwrap_err().code().as_str(), "no-such-port");
    let other = resolved(&demo, "shop", pod_of("tools-0", "web"), PortRef::Auto).await.unwrap_err();
    assert!(other.to_string().contains("not one of the pods of service shop/web"), "{other}");
}

#[tokio::test]
async fn a_headless_service_has_every_port_of_its_pods() {
    let demo = start_demo().await;
    for (port, number) in [(9187, 9187), (5432, 5432)] {
        let found = resolved(&demo, "data", service("postgres"), PortRef::number(port).unwrap()).await;
        assert_eq!(pods(found), ["data/postgres-0", "data/postgres-1"].map(|pod| format!("{pod}:{number}")));
    }
    let error = resolved(&demo, "data", service("postgres"), PortRef::Name("http".parse().unwrap())).await.unwrap_err();
    assert_eq!(error.code().as_str(), "no-such-port");
}

#[tokio::test]
async fn a_headless_service_without_ports_has_those_of_its_pods() {
    let demo = start_demo().await;
    put_service(&demo, "data", "bare", json!({"clusterIP": "None", "selector": {"app": "postgres"}}));
    eventually("it has a slice", || async {
        let (slices, _) = demo.world().list("endpointslices", Some("data"));
        slices.iter().any(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "bare")
    })
    .await;
    for (port, number) in [
        (PortRef::Auto, 5432),
        (PortRef::Name("postgres".parse().unwrap()), 5432),
        (PortRef::number(9187).unwrap(), 9187),
    ] {
        let found = resolved(&demo, "data", service("bare"), port.clone()).await;
        assert_eq!(pods(found), [format!("data/postgres-0:{number}"), format!("data/postgres-1:{number}")], "{port:?}");
        let found = resolved(&demo, "data", pod_of("postgres-0", "bare"), port.clone()).await;
        assert_eq!(pods(found), [format!("data/postgres-0:{number}")], "{port:?}");
    }
    let jump = resolve_pods(&*cluster(&demo).await, &"shop".parse().unwrap(), &service("dns")).await;
    assert_eq!(pods(jump), ["shop/tools-0:0"], "who needs no port does not mind UDP");
}

#[tokio::test]
async fn a_named_pod_that_is_not_ready_answers_and_the_answer_says_so() {
    let app = TestApp::start("").await;
    set_ready(&app.demo, "shop", "web-6d5f-a1", false);
    for host in ["web-6d5f-a1.web.shop.localhost", "web-6d5f-a1-8080.pod.shop.ns.demo.cx.k8s.localhost"] {
        let answer = answer(&app, host).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("web-6d5f-a1\n"), "{answer}");
        assert!(answer.contains("x-adit-not-ready: running, not ready\r\n"), "{answer}");
    }
    let of_service = answer(&app, "web.shop.localhost").await;
    assert!(of_service.ends_with("web-6d5f-b2\n"), "a Service has its ready pods: {of_service}");
    assert!(!of_service.contains("not-ready"), "{of_service}");
    set_ready(&app.demo, "shop", "web-6d5f-a1", true);
    eventually("it is ready", || async { !answer(&app, "web-6d5f-a1.web.shop.localhost").await.contains("not-ready") })
        .await;
    app.finish().await;
}

#[tokio::test]
async fn with_session_affinity_everybody_stays_with_one_pod_until_it_goes() {
    let app = TestApp::start("http: {idle_timeout: 300ms}\n").await;
    let mut service = (*app.demo.world().get("services", "shop", "web").unwrap()).clone();
    service["spec"]["sessionAffinity"] = json!("ClientIP");
    service["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 600}});
    app.demo.world().put("services", service);
    let together = |host: &'static str| {
        let asked = (0..20).map(|_| app.get(host, "/whoami"));
        async { futures::future::join_all(asked).await.into_iter().collect::<std::collections::BTreeSet<_>>() }
    };
    let first = together("web.shop.localhost").await;
    assert_eq!(first.len(), 1, "also at a cold start: {first:?}");
    for _ in 0..20 {
        assert!(first.contains(&app.get("80.web.shop.localhost", "/whoami").await));
    }
    let opened = app.demo.faults().upgrades_seen();
    eventually("another session has the same pod", || async {
        assert!(first.contains(&app.get("web.shop.localhost", "/whoami").await));
        tokio::time::sleep(std::time::Duration::from_millis(600)).await;
        app.demo.faults().upgrades_seen() > opened
    })
    .await;
    let (_, pod) = first.first().unwrap();
    app.demo.world().terminate_pod("shop", pod.trim(), None).unwrap();
    eventually("another pod answers", || async {
        let (status, other) = app.get("web.shop.localhost", "/whoami").await;
        status == 200 && other != *pod
    })
    .await;
    assert_eq!(together("web.shop.localhost").await.len(), 1, "and everybody stays with that one");
    app.finish().await;
}

#[tokio::test]
async fn a_missing_permission_costs_only_what_needs_it() {
    let app = TestApp::start("").await;
    let faults = app.demo.faults();
    // The permissions that `kubectl port-forward svc/web` needs.
    for verb in ["list", "watch"] {
        faults.forbid(verb, "endpointslices", true);
    }
    set_ready(&app.demo, "shop", "web-6d5f-a1", false);
    for _ in 0..4 {
        assert_eq!(app.get("web.shop.localhost", "/whoami").await, (200, "web-6d5f-b2\n".into()));
    }
    set_ready(&app.demo, "shop", "web-6d5f-a1", true);
    set_ready(&app.demo, "shop", "web-6d5f-b2", false);
    eventually("the pods of the selector are followed", || async {
        app.get("web.shop.localhost", "/whoami").await == (200, "web-6d5f-a1\n".into())
    })
    .await;
    // The permissions that `kubectl port-forward pod/web-6d5f-a1` needs.
    for resource in ["pods", "services"] {
        for verb in ["list", "watch"] {
            faults.forbid(verb, resource, true);
        }
    }
    faults.forbid("get", "services", true);
    for host in ["8080.web-6d5f-a1.web.shop.localhost", "web-6d5f-a1-8080.pod.shop.ns.demo.cx.k8s.localhost"] {
        assert_eq!(app.get(host, "/whoami").await, (200, "web-6d5f-a1\n".into()), "{host}");
    }
    let (status, body) = app.get("tools.shop.localhost", "/whoami").await;
    assert!(status == 502 && body.contains("may not get services"), "{status} {body}");
    app.finish().await;
}
