//! Which Services a client may take over, and which nobody may. A refusal changes nothing.

use serde_json::{Value, json};

use super::support::{Laptop, Place};
use adit::{
    demo::faults::Mishap,
    relay::{
        expose::{Authority, kube::PERMISSIONS},
        server::Limits,
    },
    wire::relay::{Frame, Kind},
};

/// Asserts that a Service is refused with these words, and that no object has changed.
async fn refused(place: &Place, laptop: &mut Laptop, service: &str, words: &str) {
    let before = place.objects();
    let reason = laptop.take(service).await.expect_err(service);
    assert!(reason.contains(words), "{service}: {reason}");
    assert_eq!(place.objects(), before, "{service}");
}

fn service(place: &Place, namespace: &str, name: &str, spec: Value) {
    place.demo.world().put("services", json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec}));
}

fn http(extra: Value) -> Value {
    let mut spec =
        json!({"clusterIP": "10.96.1.2", "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 80}]});
    for (key, value) in extra.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec
}

#[tokio::test]
async fn what_could_not_be_put_back_or_would_not_work_is_refused() {
    let place = Place::new().await;
    service(&place, "shop", "dual", http(json!({"selector": {"app": "web"}, "ipFamilies": ["IPv4", "IPv6"]})));
    service(&place, "shop", "local", http(json!({"selector": {"app": "web"}, "internalTrafficPolicy": "Local"})));
    service(&place, "shop", "patroni", http(json!({})));
    let metadata = json!({"namespace": "shop", "name": "patroni", "managedFields": [{"manager": "Patroni"}]});
    let subsets =
        json!([{"addresses": [{"ip": "10.9.9.9"}], "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}]);
    place.demo.world().put("endpoints", json!({"metadata": metadata, "subsets": subsets}));
    service(&place, "shop", "operated", http(json!({})));
    let owner = json!([{"apiVersion": "v1", "kind": "Cluster", "name": "pg", "uid": "1", "controller": true}]);
    let labels = json!({"kubernetes.io/service-name": "operated"});
    // The demo does not know this kind of owner, and would delete the slice as garbage.
    let metadata = json!({"namespace": "shop", "name": "operated-1", "labels": labels, "managedFields": [{"manager": "pg-operator"}]});
    let ports = json!([{"name": "http", "port": 80, "protocol": "TCP"}]);
    let _ = owner;
    place
        .demo
        .world()
        .put("endpointslices", json!({"metadata": metadata, "addressType": "IPv4", "ports": ports, "endpoints": []}));

    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    for (asked, words) in [
        ("payments.shop:80", "Service shop/payments is an ExternalName"),
        ("postgres.data:5432", "Service data/postgres is headless"),
        ("dns.shop:53", "Service shop/dns has no TCP port 53; it has 53/UDP"),
        ("web.shop:8080", "Service shop/web has no TCP port 8080; it has 80"),
        ("dual.shop:80", "Service shop/dual has IPv6 addresses, and the relay has none"),
        ("local.shop:80", "internalTrafficPolicy Local"),
        ("patroni.shop:80", "are managed by \"Patroni\", which would undo the change (Endpoints shop/patroni)"),
        (
            "operated.shop:80",
            "are managed by \"pg-operator\", which would undo the change (EndpointSlice shop/operated-1)",
        ),
        ("fresh.nowhere:80", "there is no namespace \"nowhere\""),
        ("web", "is not SERVICE.NAMESPACE:PORT"),
    ] {
        refused(&place, &mut laptop, asked, words).await;
    }
    let reason = laptop.open(Kind::Service, "web.shop:80").await.unwrap_err();
    assert!(reason.contains("Service shop/web exists: --replace"), "{reason}");
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn a_key_has_the_services_that_it_names() {
    let place = Place::new().await;
    service(&place, "kube-system", "kube-dns", http(json!({})));
    service(&place, "default", "kubernetes", http(json!({})));
    service(&place, "relay", "relay-control", http(json!({})));
    let denied = "the key \"default\" may not take over Service";
    for (key, allowed, refusals) in [
        ("", "web.shop:80", &["kube-dns.kube-system:80", "kubernetes.default:80", "relay-control.relay:80"][..]),
        ("ports=25000-25999 names=ana-*", "", &["web.shop:80", "fresh.shop:80", "kube-dns.kube-system:80"]),
        ("services=shop/tools,data/*", "tools.shop:80", &["web.shop:80", "kube-dns.kube-system:80"]),
        ("services=kube-system/kube-dns", "kube-dns.kube-system:80", &["web.shop:80", "kubernetes.default:80"]),
    ] {
        let relay = place.relay_with("one", "a", key, None).await;
        let mut laptop = Laptop::connect(&relay).await;
        for asked in refusals {
            refused(&place, &mut laptop, asked, denied).await;
        }
        if !allowed.is_empty() {
            laptop.take(allowed).await.unwrap_or_else(|reason| panic!("{key}: {reason}"));
        }
        place.relay_ends(relay).await;
    }
    let relay = place.relay_with("one", "a", "", Some("shop")).await;
    let mut laptop = Laptop::connect(&relay).await;
    refused(&place, &mut laptop, "postgres.data:5432", "takes over Services in namespace \"shop\" only").await;
    laptop.take("web.shop:80").await.unwrap();
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn a_missing_permission_is_named_and_nothing_is_left() {
    let place = Place::new().await;
    let before = place.objects();
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    let faults = place.demo.faults();
    for (verb, resource) in [
        ("get", "services"),
        ("create", "leases"),
        ("create", "endpointslices"),
        ("patch", "services"),
        ("list", "endpointslices"),
    ] {
        faults.forbid(verb, resource, true);
        let reason = laptop.take("web.shop:80").await.unwrap_err();
        assert_eq!(reason, format!("no permission to {verb} {resource} in namespace shop"));
        faults.forbid(verb, resource, false);
        place.is_again(&before).await;
    }
    // Permissions for events, watches and pods are optional.
    for (verb, resource) in [("create", "events"), ("watch", "services"), ("watch", "endpointslices"), ("get", "pods")]
    {
        faults.forbid(verb, resource, true);
    }
    laptop.take("web.shop:80").await.unwrap();
    laptop.goodbye().await;
    place.is_again(&before).await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn no_other_permission_is_needed_than_those_that_the_chart_gives() {
    let place = Place::new().await;
    place.put_outside();
    let before = place.objects();
    for (_, resource, verbs) in PERMISSIONS {
        for verb in ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"] {
            place.demo.faults().forbid(verb, resource, !verbs.contains(&verb));
        }
    }
    let (one, two) = (place.relay("one", "a").await, place.relay("two", "a").await);
    for service in ["web.shop:80", "fresh.shop:80", "outside.shop:80"] {
        let mut laptop = Laptop::connect(&one).await;
        laptop.take(service).await.unwrap();
        drop(laptop);
        place.is_again(&before).await;
    }
    // Another relay restores what this one leaves.
    let (mut ana, mut bo) = (Laptop::connect(&one).await, Laptop::connect(&two).await);
    ana.take("web.shop:80").await.unwrap();
    place.kill(one);
    place.demo.world().delete_pod("relay", "one", None);
    bo.take("web.shop:80").await.unwrap();
    place.relay_ends(two).await;
    place.is_again(&before).await;
}

/// Returns the token of a user of the demo.
fn token(place: &Place, user: &str) -> String {
    let kubeconfig = std::fs::read_to_string(place.demo.kubeconfig()).unwrap();
    let of_user = kubeconfig.split("{name: ").find(|part| part.starts_with(user) && part.contains("token:")).unwrap();
    let token = of_user.split("token:").nth(1).unwrap();
    token.trim_start().split(['\n', '}', ' ']).next().unwrap().trim_matches('"').to_owned()
}

#[tokio::test]
async fn nobody_does_through_a_relay_what_rbac_does_not_let_them_do() {
    let place = Place { authority: Authority::Kubernetes, ..Place::new().await };
    service(&place, "kube-system", "kube-dns", http(json!({})));
    let before = place.objects();
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    refused(
        &place,
        &mut laptop,
        "web.shop:80",
        "your client has sent no token: use a context that signs in with a token",
    )
    .await;
    laptop.send(Frame::Identity { token: "made-up".into() }).await;
    let words = "the cluster does not accept the token of your context: the token is not known";
    refused(&place, &mut laptop, "web.shop:80", words).await;
    laptop.send(Frame::Identity { token: token(&place, "nobody") }).await;
    let words = "user \"nobody\" may not patch services in namespace shop";
    refused(&place, &mut laptop, "web.shop:80", words).await;
    let created = laptop.open(Kind::Service, "fresh.shop:80").await.unwrap_err();
    assert!(created.contains("user \"nobody\" may not create services in namespace shop"), "{created}");
    // The rules of the key apply in addition.
    laptop.send(Frame::Identity { token: token(&place, "demo") }).await;
    refused(&place, &mut laptop, "kube-dns.kube-system:80", "the key \"default\" may not take over").await;
    // If the API server does not answer, nobody is allowed.
    place.demo.faults().judge(Some(Box::new(|_, path| path.contains("reviews").then_some(Mishap::Answer(503)))));
    refused(&place, &mut laptop, "web.shop:80", "cannot ask Kubernetes whether you may have the Service").await;
    place.demo.faults().judge(None);
    laptop.take("web.shop:80").await.unwrap();
    let takeover = place.service("web")["metadata"]["annotations"]["adit/takeover"].as_str().unwrap().to_owned();
    assert!(takeover.contains("\"owner\":\"demo, default (127.0.0.1)\""), "{takeover}");
    laptop.goodbye().await;
    place.is_again(&before).await;
    // A Service that does not exist would be created.
    place.demo.faults().forbid("create", "services", true);
    let mut laptop = Laptop::connect(&relay).await;
    laptop.send(Frame::Identity { token: token(&place, "demo") }).await;
    refused(&place, &mut laptop, "fresh.shop:80", "user \"demo\" may not create services in namespace shop").await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn a_review_that_fails_when_a_client_comes_back_changes_nothing() {
    let place = Place { authority: Authority::Kubernetes, ..Place::new().await };
    let before = place.objects();
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    laptop.send(Frame::Identity { token: token(&place, "demo") }).await;
    let port = laptop.take("web.shop:80").await.unwrap();
    let taken = place.objects();
    for review in ["tokenreviews", "subjectaccessreviews"] {
        let mut again = Laptop::connect(&relay).await;
        again.send(Frame::Identity { token: token(&place, "demo") }).await;
        again.resume = laptop.resume;
        place.demo.faults().judge(Some(Box::new(move |_, path| path.ends_with(review).then_some(Mishap::Answer(503)))));
        let refused = again.take("web.shop:80").await.unwrap_err();
        assert!(refused.contains("cannot ask Kubernetes"), "{refused}");
        place.demo.faults().judge(None);
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        assert_eq!(place.objects(), taken, "{review}: the Service stays taken over");
        assert_eq!(relay.relay.server.snapshot().len(), 1, "{review}: the old tunnel stays open");
    }
    // The next attempt succeeds, and has the same port.
    let mut again = Laptop::connect(&relay).await;
    again.send(Frame::Identity { token: token(&place, "demo") }).await;
    again.resume = laptop.resume;
    assert_eq!(again.take("web.shop:80").await, Ok(port));
    drop(laptop);
    again.goodbye().await;
    place.is_again(&before).await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn a_client_that_opens_tunnels_without_end_is_refused_at_its_limit() {
    let limits = Limits { tunnels_per_key: 3, ..Limits::default() };
    let place = Place { authority: Authority::Kubernetes, limits, ..Place::new().await };
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    laptop.send(Frame::Identity { token: token(&place, "demo") }).await;
    place.demo.faults().judge(Some(Box::new(|_, path| path.contains("reviews").then_some(Mishap::Hang))));
    for _ in 0..4 {
        laptop.ask(Kind::ReplacedService, "web.shop:80").await;
    }
    let answer = tokio::time::timeout(std::time::Duration::from_secs(2), laptop.frame()).await.expect("it is at once");
    let Frame::Refused { tunnel: 4, reason } = answer else { panic!("{answer:?}") };
    assert!(reason.contains("has 3 tunnels, and may not have more"), "{reason}");
    place.demo.faults().judge(None);
    laptop.goodbye().await;
    place.relay_ends(relay).await;
}
