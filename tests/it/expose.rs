//! Services that route to laptops: whatever happens to clients, relays and the API server, in the end each object is restored.

mod by_hand;
mod faults;
mod personal;
mod random;
mod rules;
mod support;

use std::time::Duration;

use adit::wire::relay::{Frame, Kind};
use serde_json::{Value, json};

use self::support::{Laptop, Place};
use crate::support::eventually;

/// Makes requests to the API server as slow as those to a distant one.
fn slow(place: &Place) {
    for end in
        ["/services/web", "/services", "/endpointslices", "/endpointslices/web-adit", "/leases/adit-web", "/leases"]
    {
        place.demo.faults().delay(end, Some(Duration::from_millis(20)));
    }
}

#[tokio::test]
async fn a_port_leads_to_the_laptop_and_is_as_before_at_the_end() {
    let place = Place::new().await;
    let before = place.objects();
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    let port = laptop.take("web.shop:80").await.unwrap();
    let web = place.service("web");
    assert_eq!(web["spec"]["ports"][0]["targetPort"], "adit-80");
    assert_eq!(web["spec"]["selector"], json!({"app": "web"}), "the selector stays");
    let slice = place.slice("web-adit").unwrap();
    assert_eq!(slice["ports"], json!([{"name": "http", "port": port, "protocol": "TCP"}]));
    assert_eq!(slice["metadata"]["ownerReferences"][0]["uid"], web["metadata"]["uid"]);
    eventually("the pods are no longer behind the port", || async { place.served("web", "http") == [port] }).await;
    assert_eq!(place.lease("web").unwrap()["spec"]["holderIdentity"], "relay/one/uid-of-one/a");
    laptop.goodbye().await;
    place.is_again(&before).await;
    eventually("Events say so", || async { place.events("web") == ["TakenOver", "GivenBack"] }).await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn a_client_that_comes_back_has_the_service_and_nothing_is_left_half_done() {
    let place = Place::new().await;
    let before = place.objects();
    let relay = place.relay("one", "a").await;
    slow(&place);
    for service in ["web.shop:80", "fresh.shop:80"] {
        let mut laptop = Laptop::connect(&relay).await;
        let mut port = laptop.take(service).await.unwrap();
        let name = service.split('.').next().unwrap();
        let uid = place.service(name)["metadata"]["uid"].clone();
        for _ in 0..20 {
            // The relay does not know yet that the previous client is gone.
            let mut again = Laptop::connect(&relay).await;
            again.resume = laptop.resume;
            port = again.take(service).await.unwrap();
            drop(std::mem::replace(&mut laptop, again));
            assert_eq!(place.served_by_us(name), [port]);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(place.served_by_us(name), [port]);
        assert_eq!(place.service(name)["metadata"]["uid"], uid, "it was not deleted in between");
        laptop.goodbye().await;
        place.is_again(&before).await;
    }
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn the_end_of_an_old_tunnel_does_not_undo_a_new_one() {
    let place = Place::new().await;
    let before = place.objects();
    let relay = place.relay("one", "a").await;
    slow(&place);
    for _ in 0..5 {
        let mut first = Laptop::connect(&relay).await;
        first.take("web.shop:80").await.unwrap();
        first.goodbye().await;
        // At once, without the old reservation.
        let mut second = Laptop::connect(&relay).await;
        let port = eventually_taken(&mut second, "web.shop:80").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!((place.served("web", "http"), place.served_by_us("web")), (vec![port], vec![port]));
        second.goodbye().await;
        place.is_again(&before).await;
    }
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn others_see_who_has_a_service_as_far_as_its_client_says() {
    let place = Place::new().await;
    let relay = place.relay("one", "a").await;
    let (mut anna, mut bo) = (Laptop::connect(&relay).await, Laptop::connect(&relay).await);
    anna.send(Frame::Identity { token: "claim anna@laptop, (root)".into() }).await;
    anna.take("web.shop:80").await.unwrap();
    let refused = tokio::select! {
        taken = bo.take("web.shop:80") => taken.unwrap_err(),
        frame = anna.frame() => panic!("{frame:?}"),
    };
    assert!(refused.contains("by default (127.0.0.1; claims to be anna@laptoproot) already"), "{refused}");
    assert!(place.service("web")["metadata"]["annotations"].to_string().contains("claims to be anna@laptoproot"));
    anna.goodbye().await;
    place.relay_ends(relay).await;
}

async fn eventually_taken(laptop: &mut Laptop, service: &str) -> u16 {
    for _ in 0..100 {
        match laptop.take(service).await {
            Ok(port) => return port,
            Err(reason) => assert!(reason.contains("already"), "{reason}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it was never free");
}

#[tokio::test]
async fn all_other_ports_go_on_working_and_can_be_taken_too() {
    let place = Place::new().await;
    let before = place.objects();
    let relay = place.relay("one", "a").await;
    let (mut ana, mut bo) = (Laptop::connect(&relay).await, Laptop::connect(&relay).await);
    let of_ana = ana.take("tools.shop:80").await.unwrap();
    eventually("the port leads to ana alone", || async { place.served("tools", "web") == [of_ana] }).await;
    assert_eq!(place.served("tools", "echo"), [7000]);
    // A client that answers keeps its takeover.
    let refused = tokio::select! {
        taken = bo.take("tools.shop:80") => taken.unwrap_err(),
        frame = ana.frame() => panic!("{frame:?}"),
    };
    assert!(refused.contains("is taken over by default (127.0.0.1) already"), "{refused}");
    let of_bo = bo.take("tools.shop:7000").await.unwrap();
    eventually("both have theirs", || async {
        (place.served("tools", "web"), place.served("tools", "echo")) == (vec![of_ana], vec![of_bo])
    })
    .await;
    assert_eq!(place.served("tools", "h2c"), [8081]);
    // A pod that is replaced meanwhile still serves the other ports.
    place.demo.world().terminate_pod("shop", "tools-0", Some(Duration::ZERO));
    eventually("the new pod serves", || async { place.ready("tools") == 1 && place.served("tools", "h2c") == [8081] })
        .await;
    ana.goodbye().await;
    eventually("ana's port is back", || async { place.served("tools", "web") == [8080] }).await;
    assert_eq!(place.served("tools", "echo"), [of_bo]);
    bo.goodbye().await;
    place.is_as_before("services", &before).await;
    eventually("nothing of ours is left", || async { place.ours().is_empty() }).await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn endpoints_that_were_written_by_hand_are_kept_whole() {
    let place = Place::new().await;
    let ports =
        json!([{"name": "http", "port": 80, "protocol": "TCP"}, {"name": "alt", "port": 81, "protocol": "TCP"}]);
    let spec = json!({"clusterIP": "10.96.1.1", "ports": [
        {"name": "http", "port": 80, "protocol": "TCP", "targetPort": 80}, {"name": "alt", "port": 81, "protocol": "TCP", "targetPort": 81}
    ]});
    let world = place.demo.world();
    world.put("services", json!({"metadata": {"namespace": "shop", "name": "outside"}, "spec": spec}));
    let labels = json!({"kubernetes.io/service-name": "outside", "endpointslice.kubernetes.io/managed-by": "staff"});
    world.put(
        "endpointslices",
        json!({"metadata": {"namespace": "shop", "name": "outside-1", "labels": labels}, "addressType": "IPv4", "ports": ports,
               "endpoints": [{"addresses": ["10.9.9.9"], "conditions": {"ready": true}}]}),
    );
    let subsets = json!([{"addresses": [{"ip": "10.9.9.9"}], "ports": ports}]);
    world.put("endpoints", json!({"metadata": {"namespace": "shop", "name": "outside"}, "subsets": subsets}));
    let before = place.objects();
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    let port = laptop.take("outside.shop:80").await.unwrap();
    assert_eq!((place.served("outside", "http"), place.served("outside", "alt")), (vec![port], vec![81]));
    let endpoints = world.get("endpoints", "shop", "outside").unwrap();
    assert_eq!(endpoints["subsets"][0]["ports"], json!([ports[1]]));
    drop(laptop);
    place.is_again(&before).await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn endpoints_by_hand_with_one_port_are_restored() {
    let place = Place::new().await;
    let (world, metadata) = (place.demo.world(), json!({"namespace": "shop", "name": "single"}));
    let ports = json!([{"name": "http", "port": 80, "protocol": "TCP"}]);
    let spec =
        json!({"clusterIP": "10.96.1.3", "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 80}]});
    world.put("services", json!({"metadata": metadata, "spec": spec}));
    let labels = json!({"kubernetes.io/service-name": "single", "endpointslice.kubernetes.io/managed-by": "staff"});
    let of_slice = json!({"namespace": "shop", "name": "single-1", "labels": labels});
    let endpoints = json!([{"addresses": ["10.9.9.9"], "conditions": {"ready": true}}]);
    world.put(
        "endpointslices",
        json!({"metadata": of_slice, "addressType": "IPv4", "ports": ports, "endpoints": endpoints}),
    );
    world.put(
        "endpoints",
        json!({"metadata": metadata, "subsets": [{"addresses": [{"ip": "10.9.9.9"}], "ports": ports}]}),
    );
    let before = place.objects();
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    let port = laptop.take("single.shop:80").await.unwrap();
    assert_eq!(place.served("single", "http"), [port]);
    assert_eq!(place.slice("single-1").unwrap()["ports"], Value::Null, "as the API server stores it");
    laptop.goodbye().await;
    place.is_again(&before).await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn endpoints_of_a_service_that_gets_a_selector_keep_nothing_of_ours() {
    let place = Place::new().await;
    place.put_outside();
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    laptop.take("outside.shop:80").await.unwrap();
    let mut outside = place.service("outside");
    outside["spec"]["selector"] = json!({"app": "outside"});
    place.demo.world().put("services", outside);
    laptop.goodbye().await;
    eventually("nothing of ours is left", || async { place.ours().is_empty() }).await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn the_owners_of_fields_are_those_of_before() {
    let place = Place::new().await;
    place.put_outside();
    let world = place.demo.world();
    let owners = json!([{"manager": "helm", "operation": "Apply"}]);
    let (kinds, relay) = (
        [("services", "outside"), ("endpointslices", "outside-1"), ("endpoints", "outside")],
        place.relay("one", "a").await,
    );
    let mut laptop = Laptop::connect(&relay).await;
    laptop.take("outside.shop:80").await.unwrap();
    for (kind, name) in kinds {
        // As the API server writes it at each change.
        let mut object = (*world.get(kind, "shop", name).unwrap()).clone();
        object["metadata"]["managedFields"] =
            json!([owners[0], {"manager": "adit", "operation": "Update", "time": "2026-01-01T00:00:00Z"}]);
        world.put(kind, object);
    }
    laptop.goodbye().await;
    eventually("helm alone owns them", || async {
        kinds.iter().all(|(kind, name)| world.get(kind, "shop", name).unwrap()["metadata"]["managedFields"] == owners)
    })
    .await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn a_service_that_has_lost_both_records_is_known_to_its_relay() {
    let place = Place::new().await;
    let before = place.objects();
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    let port = laptop.take("web.shop:80").await.unwrap();
    let mut web = place.service("web");
    web["metadata"]["annotations"].as_object_mut().unwrap().remove("adit/takeover");
    web["metadata"]["labels"].as_object_mut().unwrap().remove("adit/exposed");
    // In one step, so that the relay sees no intermediate state.
    place.demo.world().put("services", web);
    place.delete("leases", "adit-web").await;
    eventually("both are there again", || async {
        place.service("web")["metadata"]["annotations"]["adit/takeover"].is_string() && place.lease("web").is_some()
    })
    .await;
    assert_eq!(place.served_by_us("web"), [port]);
    laptop.goodbye().await;
    place.is_again(&before).await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn a_client_that_is_killed_gives_way_whatever_it_has_said_last() {
    let place = Place::new().await;
    let relay = place.relay("one", "a").await;
    let mut ana = Laptop::connect(&relay).await;
    ana.take("web.shop:80").await.unwrap();
    let mut again = Laptop::connect(&relay).await;
    again.ask(Kind::ReplacedService, "web.shop:80").await;
    // The client dies while its answer to an older ping is under way.
    ana.next_ping().await;
    ana.send(Frame::Pong { cookie: 0 }).await;
    drop(ana);
    let answer = again.frame().await;
    assert!(matches!(answer, Frame::Opened { .. }), "{answer:?}");
    again.goodbye().await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn a_service_that_is_created_goes_with_the_laptop() {
    let place = Place::new().await;
    let before = place.objects();
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    let port = laptop.open(Kind::Service, "fresh.shop:80").await.unwrap();
    assert_eq!(place.served("fresh", "adit-80"), [port]);
    let more = laptop.open(Kind::Service, "fresh.shop:443").await.unwrap();
    assert_eq!((place.served("fresh", "adit-80"), place.served("fresh", "adit-443")), (vec![port], vec![more]));
    let refused = laptop.open(Kind::Service, "web.shop:80").await.unwrap_err();
    assert!(refused.contains("Service shop/web exists: --replace"), "{refused}");
    let refused = laptop.open(Kind::ReplacedService, "mistyped.shop:80").await.unwrap_err();
    assert_eq!(refused, "Service shop/mistyped does not exist: without --replace it is created");
    laptop.goodbye().await;
    place.is_again(&before).await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn what_somebody_puts_back_is_told_and_not_fought_over() {
    let place = Place::new().await;
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    laptop.take("web.shop:80").await.unwrap();
    // As Argo CD does.
    let mut web = place.service("web");
    web["spec"]["ports"][0]["targetPort"] = json!("http");
    web["metadata"]["annotations"]["argocd.argoproj.io/tracking-id"] = json!("shop:/Service:shop/web");
    web["metadata"]["managedFields"] = json!([{"manager": "argocd-controller", "time": "2026-01-01T00:00:00Z"}]);
    place.demo.world().put("services", web);
    let Frame::Refused { reason, .. } = laptop.frame().await else { panic!("nothing was told") };
    assert!(reason.contains("Service shop/web was changed back by argocd-controller: pause Argo CD"), "{reason}");
    eventually("nothing of ours is left", || async { place.ours().is_empty() }).await;
    assert_eq!(place.served("web", "http"), [8080]);
    assert!(place.events("web").contains(&"TakeoverUndone".to_owned()));

    // Deleting the Service deletes everything.
    laptop.take("web.shop:80").await.unwrap();
    place.delete("services", "web").await;
    let Frame::Refused { reason, .. } = laptop.frame().await else { panic!("nothing was told") };
    assert!(reason.contains("Service shop/web was deleted"), "{reason}");
    eventually("nothing of ours is left", || async { place.ours().is_empty() }).await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn a_client_whose_service_was_put_back_says_so_and_ends() {
    use adit::{drain::Drain, relay::client};
    let place = Place::new().await;
    let relay = place.relay("one", "a").await;
    let (local, drain) = (crate::relay::echo().await.0, Drain::new());
    let wanted = client::Wanted { local_port: local, kind: Kind::ReplacedService, port: 0, name: "web.shop:80".into() };
    let options = client::Options { tunnels: vec![wanted], ..relay.relay.client(local, 0) };
    let (mut opened, running) = crate::relay::start(options, &drain);
    opened.recv().await.unwrap();
    let mut web = place.service("web");
    web["spec"]["ports"][0]["targetPort"] = json!("http");
    place.demo.world().put("services", web);
    let ended = tokio::time::timeout(crate::support::PATIENCE, running).await.expect("it ends").unwrap().unwrap_err();
    assert!(ended.to_string().contains("Service shop/web was changed back"), "{ended}");
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn a_slice_that_somebody_deletes_is_made_again() {
    let place = Place::new().await;
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    let port = laptop.take("web.shop:80").await.unwrap();
    place.delete("endpointslices", "web-adit").await;
    place.delete("leases", "adit-web").await;
    eventually("both are there", || async { place.served_by_us("web") == [port] && place.lease("web").is_some() })
        .await;
    // A slice of another relay is made this one's, and one that nobody needs is deleted.
    let ours = place.slice("web-adit").unwrap();
    let mut other = ours.clone();
    other["metadata"]["annotations"]["adit/relay"] = json!("relay/gone/uid/a");
    other["endpoints"][0]["addresses"] = json!(["10.9.9.9"]);
    place.demo.world().put("endpointslices", other.clone());
    other["metadata"]["name"] = json!("web-adit-ipv6");
    other["addressType"] = json!("IPv6");
    place.demo.world().put("endpointslices", other);
    eventually("they are right", || async {
        let found = place.slice("web-adit").unwrap();
        let is_ours = (&found["metadata"]["annotations"], &found["endpoints"])
            == (&ours["metadata"]["annotations"], &ours["endpoints"]);
        is_ours && place.slice("web-adit-ipv6").is_none()
    })
    .await;
    // So is one whose type cannot be changed.
    let mut other = ours.clone();
    other["addressType"] = json!("FQDN");
    place.demo.world().put("endpointslices", other);
    eventually("it is made again", || async {
        place.slice("web-adit").is_some_and(|found| found["addressType"] == "IPv4")
    })
    .await;
    laptop.goodbye().await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn changes_by_others_are_noticed_before_the_lease_is_renewed() {
    let place = Place::new().await;
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    let port = laptop.take("web.shop:80").await.unwrap();
    let renewed = || place.lease("web").unwrap()["spec"]["renewTime"].clone();
    let is_taken = || place.service("web")["metadata"]["annotations"]["adit/takeover"].is_string();
    for kind in ["services", "endpointslices"] {
        let mut is_noticed = false;
        // A renewal may come in between by chance.
        for _ in 0..3 {
            let before = renewed();
            match kind {
                "services" => {
                    let mut web = place.service("web");
                    web["metadata"]["annotations"].as_object_mut().unwrap().remove("adit/takeover");
                    place.demo.world().put("services", web);
                }
                _ => place.delete("endpointslices", "web-adit").await,
            }
            eventually(kind, || async { is_taken() && place.served_by_us("web") == [port] }).await;
            is_noticed |= renewed() == before;
            if is_noticed {
                break;
            }
        }
        assert!(is_noticed, "{kind}");
    }
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn a_port_has_an_endpoint_until_its_pods_are_behind_it_again() {
    let place = Place::new().await;
    let (world, metadata) = (place.demo.world(), json!({"namespace": "shop", "name": "slow"}));
    let ports = json!([{"name": "http", "port": 80, "protocol": "TCP"}]);
    let mut of_service = ports.clone();
    of_service[0]["targetPort"] = json!(80);
    world.put("services", json!({"metadata": metadata, "spec": {"clusterIP": "10.96.1.4", "ports": of_service}}));
    // The demo has no controller of this name: the test is a slow one.
    let labels = json!({
        "kubernetes.io/service-name": "slow",
        "endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io"
    });
    let metadata = json!({"namespace": "shop", "name": "slow-1", "labels": labels});
    let endpoints = json!([{"addresses": ["10.9.9.9"], "conditions": {"ready": true}}]);
    let put = |ports: Value| {
        let slice = json!({"metadata": metadata, "addressType": "IPv4", "endpoints": endpoints, "ports": ports});
        world.put("endpointslices", slice);
    };
    put(json!([]));
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    let port = laptop.take("slow.shop:80").await.unwrap();
    laptop.goodbye().await;
    let looks = || place.demo.faults().requests_seen("/namespaces/shop/endpointslices");
    eventually("the Service is restored", || async { place.service("slow")["spec"]["ports"] == of_service }).await;
    let before = looks();
    eventually("it looks for the pods", || async { looks() > before + 2 }).await;
    assert_eq!(place.served_by_us("slow"), [port]);
    put(ports);
    eventually("nothing of ours is left", || async { place.ours().is_empty() }).await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn a_service_that_is_created_in_the_namespace_of_its_relay_goes_with_its_pod() {
    let place = Place::new().await;
    let relay = place.relay_with("one", "a", "services=relay/*", None).await;
    let mut laptop = Laptop::connect(&relay).await;
    laptop.open(Kind::Service, "fresh.relay:80").await.unwrap();
    let fresh = place.demo.world().get("services", "relay", "fresh").unwrap();
    let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "one", "uid": "uid-of-one"});
    assert_eq!(fresh["metadata"]["ownerReferences"], json!([owner]));
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn a_name_that_is_somebody_elses_is_left_alone() {
    let place = Place::new().await;
    let theirs = json!({"metadata": {"namespace": "shop", "name": "adit-web"}, "spec": {"holderIdentity": "somebody"}});
    place.demo.world().put("leases", theirs);
    let before = place.objects();
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    let refused = laptop.take("web.shop:80").await.unwrap_err();
    assert!(refused.contains("Lease shop/adit-web exists and was not created by adit"), "{refused}");
    assert_eq!(place.objects(), before);
    let labels = json!({"kubernetes.io/service-name": "tools"});
    let metadata = json!({"namespace": "shop", "name": "tools-adit", "labels": labels});
    place.demo.world().put(
        "endpointslices",
        json!({"metadata": metadata, "addressType": "IPv4", "endpoints": Value::Null, "ports": []}),
    );
    let before = place.objects();
    let refused = laptop.take("tools.shop:80").await.unwrap_err();
    assert!(refused.contains("EndpointSlice shop/tools-adit exists and was not created by adit"), "{refused}");
    assert_eq!(place.objects(), before);
    place.delete("leases", "adit-web").await;
    place.delete("endpointslices", "tools-adit").await;
    place.relay_ends(relay).await;
}
