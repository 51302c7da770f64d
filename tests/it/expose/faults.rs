//! Killed relays, and API servers that hang, answer late, or lose answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use adit::{
    demo::faults::Mishap,
    wire::relay::{Frame, Kind},
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::support::{Laptop, Place, kind};
use crate::support::eventually;

/// Injects a fault into `count` writes from number `first` on, counted from 0. Returns the number of writes so far.
fn writes_meet(place: &Place, first: usize, count: usize, mishap: Mishap) -> Arc<AtomicUsize> {
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = seen.clone();
    place.demo.faults().judge(Some(Box::new(move |method, path| {
        if method == http::Method::GET || path.ends_with("/events") {
            return None;
        }
        let at = counted.fetch_add(1, Ordering::SeqCst);
        (first..first.saturating_add(count)).contains(&at).then_some(mishap)
    })));
    seen
}

#[tokio::test]
async fn a_hanging_api_server_does_not_hold_up_the_conversation() {
    let place = Place::new().await;
    let before = place.objects();
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    place.demo.faults().judge(Some(Box::new(|_, _| Some(Mishap::Hang))));
    laptop.ask(Kind::ReplacedService, "web.shop:80").await;
    let asked = Instant::now();
    for cookie in 1..20 {
        laptop.send(Frame::Ping { cookie }).await;
        laptop.pong(cookie).await;
    }
    assert!(asked.elapsed() < Duration::from_secs(9), "{:?}", asked.elapsed());
    // The client gets an error, and does not wait forever.
    let Frame::Refused { reason, .. } = laptop.frame().await else { panic!("it was opened") };
    assert!(reason.contains("did not answer within 5 s to"), "{reason}");
    assert!(asked.elapsed() < Duration::from_secs(25), "{:?}", asked.elapsed());
    // A client that closes or leaves meanwhile leaves nothing behind.
    laptop.ask(Kind::ReplacedService, "web.shop:80").await;
    laptop.send(Frame::Close { tunnel: 2 }).await;
    let Frame::Refused { reason, .. } = laptop.frame().await else { panic!("it was opened") };
    assert!(reason.contains("closed"), "{reason}");
    laptop.ask(Kind::ReplacedService, "web.shop:80").await;
    laptop.send(Frame::Ping { cookie: 99 }).await;
    laptop.pong(99).await;
    drop(laptop);
    place.demo.faults().judge(None);
    place.is_again(&before).await;
    sleep(Duration::from_secs(1)).await;
    place.is_again(&before).await;
    let mut again = Laptop::connect(&relay).await;
    again.take("web.shop:80").await.unwrap();
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn a_relay_that_is_killed_at_any_write_leaves_nothing_for_good() {
    for services in [["web.shop:80", "web"], ["fresh.shop:80", "fresh"], ["outside.shop:80", "outside"]] {
        let place = Place::new().await;
        place.put_outside();
        let before = place.objects();
        let mut at = 0;
        loop {
            let relay = place.relay("one", &format!("a{at}")).await;
            let mut laptop = Laptop::connect(&relay).await;
            let seen = writes_meet(&place, at, usize::MAX, Mishap::Hang);
            laptop.ask(kind(services[0]), services[0]).await;
            // Either all writes succeed, or write number `at` hangs.
            let is_taken = tokio::select! {
                answer = laptop.frame() => {
                    assert!(matches!(answer, Frame::Opened { .. }), "{answer:?}");
                    true
                }
                () = eventually("it hangs", || async { seen.load(Ordering::SeqCst) > at }) => false,
            };
            place.kill(relay);
            place.demo.faults().judge(None);
            // The next relay in the same pod restores what it finds.
            let relay = place.relay("one", &format!("b{at}")).await;
            place.is_again(&before).await;
            place.relay_ends(relay).await;
            if is_taken {
                break;
            }
            at += 1;
        }
        assert!(at >= 3, "{services:?}: {at} writes");
    }
}

#[tokio::test]
async fn a_relay_that_is_killed_while_it_gives_back_leaves_nothing_for_good() {
    let place = Place::new().await;
    place.put_outside();
    let before = place.objects();
    for at in 0..6 {
        let relay = place.relay("one", &format!("a{at}")).await;
        let mut laptop = Laptop::connect(&relay).await;
        laptop.take("outside.shop:80").await.unwrap();
        let seen = writes_meet(&place, at, usize::MAX, Mishap::Hang);
        laptop.goodbye().await;
        let all = async { place.is_again(&before).await };
        tokio::select! {
            () = all => {}
            () = eventually("it hangs", || async { seen.load(Ordering::SeqCst) > at }) => {}
        }
        place.kill(relay);
        place.demo.faults().judge(None);
        let relay = place.relay("one", &format!("b{at}")).await;
        place.is_again(&before).await;
        place.relay_ends(relay).await;
    }
}

#[tokio::test]
async fn answers_that_are_lost_late_or_refused_at_any_write_change_nothing_in_the_end() {
    let place = Place::new().await;
    place.put_outside();
    let before = place.objects();
    let mut round = 0;
    for mishap in [
        Mishap::Lose,
        Mishap::Answer(409),
        Mishap::Answer(429),
        Mishap::Answer(500),
        Mishap::Answer(503),
        Mishap::Answer(422),
    ] {
        for at in 0..7 {
            round += 1;
            let service = ["web.shop:80", "fresh.shop:80", "outside.shop:80"][round % 3];
            let relay = place.relay("one", &format!("a{round}")).await;
            let mut laptop = Laptop::connect(&relay).await;
            writes_meet(&place, at, 1 + round % 2, mishap);
            // The takeover succeeds, or the client gets the reason. Only 422 is final.
            match laptop.take(service).await {
                Ok(port) => assert_eq!(place.served_by_us(service.split('.').next().unwrap()), [port]),
                Err(reason) => {
                    assert!(mishap == Mishap::Answer(422) && reason.contains("(422)"), "{mishap:?} at {at}: {reason}")
                }
            }
            laptop.goodbye().await;
            place.is_again(&before).await;
            place.demo.faults().judge(None);
            place.relay_ends(relay).await;
        }
    }
}

#[tokio::test]
async fn the_owners_of_fields_are_those_of_before_after_a_relay_was_killed_at_its_end() {
    let owners = json!([{"manager": "helm", "operation": "Apply"}]);
    // Its last slice is there, or gone already.
    for has_slice in [true, false] {
        let place = Place::new().await;
        place.put_outside();
        let before = place.objects();
        let world = place.demo.world();
        let kinds = [("services", "outside"), ("endpointslices", "outside-1"), ("endpoints", "outside")];
        for (kind, name) in kinds {
            let mut object = (*world.get(kind, "shop", name).unwrap()).clone();
            object["metadata"]["managedFields"] =
                json!([owners[0], {"manager": "adit", "operation": "Update", "time": "2026-01-01T00:00:00Z"}]);
            world.put(kind, object);
        }
        if has_slice {
            let labels =
                json!({"kubernetes.io/service-name": "outside", "endpointslice.kubernetes.io/managed-by": "adit"});
            let metadata = json!({"namespace": "shop", "name": "outside-adit", "labels": labels});
            world.put(
                "endpointslices",
                json!({"metadata": metadata, "addressType": "IPv4", "endpoints": [], "ports": []}),
            );
        }
        let labels = json!({"adit/exposed": "true", "app.kubernetes.io/managed-by": "adit"});
        let metadata = json!({"namespace": "shop", "name": "adit-outside", "labels": labels});
        world.put("leases", json!({"metadata": metadata, "spec": {"holderIdentity": "relay/gone/uid/a"}}));
        // Somebody else changes an object at the same time.
        writes_meet(&place, usize::from(has_slice), 1, Mishap::Answer(409));
        let relay = place.relay("one", "a").await;
        place.is_again(&before).await;
        for (kind, name) in kinds {
            let object = world.get(kind, "shop", name).unwrap();
            assert_eq!(object["metadata"]["managedFields"], owners, "{kind}, has slice: {has_slice}");
        }
        place.relay_ends(relay).await;
    }
}

#[tokio::test]
async fn a_write_that_is_done_after_its_time_is_undone() {
    let place = Place::new().await;
    let before = place.objects();
    for at in 0..3 {
        let relay = place.relay("one", &format!("a{at}")).await;
        let mut laptop = Laptop::connect(&relay).await;
        let seen = writes_meet(&place, at, 1, Mishap::Late(Duration::from_millis(6500)));
        laptop.ask(Kind::ReplacedService, "web.shop:80").await;
        eventually("it hangs", || async { seen.load(Ordering::SeqCst) > at }).await;
        // The client is gone long before that.
        drop(laptop);
        sleep(Duration::from_millis(8000)).await;
        place.is_again(&before).await;
        sleep(Duration::from_millis(2500)).await;
        place.is_again(&before).await;
        place.demo.faults().judge(None);
        place.relay_ends(relay).await;
    }
}

#[tokio::test]
async fn one_relay_at_a_time_has_a_service() {
    let place = Place::new().await;
    let before = place.objects();
    let (one, two) = (place.relay("one", "a").await, place.relay("two", "a").await);
    let (mut ana, mut bo) = (Laptop::connect(&one).await, Laptop::connect(&two).await);
    let port = ana.take("web.shop:80").await.unwrap();
    let refused = bo.take("web.shop:80").await.unwrap_err();
    let wanted = "Service shop/web is taken over by default (127.0.0.1) through the relay relay/one";
    assert_eq!((refused.as_str(), place.served_by_us("web")), (wanted, vec![port]));
    // The record on the Service says so too.
    place.delete("leases", "adit-web").await;
    assert_eq!(bo.take("web.shop:80").await.unwrap_err(), wanted);
    // Its pod disappears without a signal: another relay may take over at once.
    place.kill(one);
    place.demo.world().delete_pod("relay", "one", None);
    let port = bo.take("web.shop:80").await.unwrap();
    assert_eq!(place.served_by_us("web"), [port]);
    bo.goodbye().await;
    place.is_again(&before).await;
    place.relay_ends(two).await;
}

#[tokio::test]
async fn a_relay_has_ended_with_its_pod_and_counts_as_alive_while_that_is_unknown() {
    for (change, is_gone) in [
        (json!({"metadata": {"uid": "another"}}), true),
        (json!({"status": {"phase": "Failed"}}), true),
        (json!({"status": {"phase": "Unknown"}}), false),
    ] {
        let place = Place::new().await;
        let (one, two) = (place.relay("one", "a").await, place.relay("two", "a").await);
        let (mut ana, mut bo) = (Laptop::connect(&one).await, Laptop::connect(&two).await);
        ana.take("web.shop:80").await.unwrap();
        place.kill(one);
        place.demo.faults().forbid("get", "pods", true);
        assert!(bo.take("web.shop:80").await.unwrap_err().contains("is taken over by"), "{change}");
        let mut pod = (*place.demo.world().get("pods", "relay", "one").unwrap()).clone();
        for (part, fields) in change.as_object().unwrap() {
            fields.as_object().unwrap().iter().for_each(|(field, value)| pod[part][field] = value.clone());
        }
        place.demo.world().put("pods", pod);
        place.demo.faults().forbid("get", "pods", false);
        assert_eq!(bo.take("web.shop:80").await.is_ok(), is_gone, "{change}");
        place.demo.world().delete_pod("relay", "one", None);
        place.relay_ends(two).await;
    }
}

#[tokio::test]
async fn a_client_whose_service_is_being_restored_by_hand_is_told() {
    let place = Place::new().await;
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    laptop.take("web.shop:80").await.unwrap();
    let mut lease = place.lease("web").unwrap();
    lease["spec"]["holderIdentity"] = json!("adit/restore//1");
    place.demo.world().put("leases", lease);
    place.delete("endpointslices", "web-adit").await;
    let Frame::Refused { reason, .. } = laptop.frame().await else { panic!("nothing was told") };
    assert_eq!(reason, "Service shop/web was restored with 'adit expose restore'");
    place.kill(relay);
}

#[tokio::test]
async fn a_lease_is_renewed_as_long_as_its_relay_lives() {
    let place = Place::new().await;
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    laptop.take("web.shop:80").await.unwrap();
    let lease = place.lease("web").unwrap();
    let renewed = || place.lease("web").unwrap()["spec"]["renewTime"].clone();
    let before = renewed();
    let name = lease["metadata"]["name"].as_str().unwrap();
    place.demo.faults().delay(&format!("/leases/{name}"), Some(Duration::from_millis(500)));
    eventually("it is renewed", || async { renewed() != before }).await;
    // The relay has no answer yet. It ends without waiting for the next renewal.
    relay.relay.drain.start();
    assert_eq!(relay.drain.finish(Duration::from_secs(8)).await, 0);
    assert_eq!(place.ours(), Vec::<String>::new());
}

#[tokio::test]
async fn any_trace_of_a_relay_is_found_and_removed() {
    for trace in ["a label", "an original"] {
        let place = Place::new().await;
        place.put_outside();
        let before = place.objects();
        let world = place.demo.world();
        match trace {
            "a label" => {
                let mut outside = place.service("outside");
                outside["metadata"]["labels"] = json!({"adit/exposed": "true", "app": "outside"});
                world.put("services", outside);
            }
            _ => {
                let relay = place.relay("one", "a").await;
                Laptop::connect(&relay).await.take("outside.shop:80").await.unwrap();
                place.kill(relay);
                // Somebody has restored the Service and the slices, but not the Endpoints.
                world.put("services", before["services shop/outside"].clone());
                world.put("endpointslices", before["endpointslices shop/outside-1"].clone());
                place.delete("endpointslices", "outside-adit").await;
            }
        }
        let relay = place.relay("one", "b").await;
        eventually(trace, || async { place.ours().is_empty() }).await;
        place.is_as_before("endpoints ", &before).await;
        place.relay_ends(relay).await;
    }
}

#[tokio::test]
async fn a_lease_that_is_not_renewed_is_no_more() {
    let place = Place::new().await;
    let before = place.objects();
    let (one, two) = (place.relay("one", "a").await, place.relay("two", "a").await);
    let (mut ana, mut bo) = (Laptop::connect(&one).await, Laptop::connect(&two).await);
    ana.take("web.shop:80").await.unwrap();
    // Its pod exists, but does nothing any more.
    place.kill(one);
    let mut lease = place.lease("web").unwrap();
    lease["spec"]["leaseDurationSeconds"] = json!(1);
    place.demo.world().put("leases", lease);
    assert!(bo.take("web.shop:80").await.unwrap_err().contains("is taken over by"));
    sleep(Duration::from_millis(1200)).await;
    bo.take("web.shop:80").await.unwrap();
    // Relay two has taken it over as it was, or after a sweep restored it.
    assert_eq!(place.lease("web").unwrap()["spec"]["holderIdentity"], "relay/two/uid-of-two/a");
    bo.goodbye().await;
    place.is_again(&before).await;
    place.relay_ends(two).await;
}

#[tokio::test]
async fn a_relay_that_has_lost_its_lease_says_so_and_touches_nothing() {
    let place = Place::new().await;
    let (one, two) = (place.relay("one", "a").await, place.relay("two", "a").await);
    let (mut ana, mut bo) = (Laptop::connect(&one).await, Laptop::connect(&two).await);
    ana.take("web.shop:80").await.unwrap();
    // The other relay assumes that it is gone.
    place.demo.world().delete_pod("relay", "one", None);
    let port = bo.take("web.shop:80").await.unwrap();
    let Frame::Refused { reason, .. } = ana.frame().await else { panic!("nothing was told") };
    assert_eq!(reason, "Service shop/web was taken over by another relay, relay/two");
    drop(ana);
    sleep(Duration::from_millis(500)).await;
    assert_eq!(place.served_by_us("web"), [port]);
    place.relay_ends(two).await;
    place.relay_ends(one).await;
}

#[tokio::test]
async fn a_relay_that_ends_gives_back_what_it_has() {
    let place = Place::new().await;
    let before = place.objects();
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    laptop.take("web.shop:80").await.unwrap();
    laptop.open(Kind::Service, "fresh.shop:80").await.unwrap();
    // The client does not react.
    place.relay_ends(relay).await;
    place.is_again(&before).await;
}

#[tokio::test]
async fn a_takeover_that_fails_halfway_passes_visitors_on_until_the_service_is_given_back() {
    let place = Place::new().await;
    let before = place.objects();
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    let port = laptop.take("web.shop:80").await.unwrap();
    let mut again = Laptop::connect(&relay).await;
    again.resume = laptop.resume;
    // A takeover in the same second would write nothing: its record has the time in seconds.
    sleep(Duration::from_millis(1_100)).await;
    place.demo.faults().judge(Some(Box::new(|method, _| (method != http::Method::GET).then_some(Mishap::Answer(503)))));
    again.take("web.shop:80").await.unwrap_err();
    // The Service cannot be given back yet, so its clients still arrive at the port.
    for _ in 0..5 {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("a visitor is accepted");
        sleep(Duration::from_millis(50)).await;
    }
    place.demo.faults().judge(None);
    // The relay pauses between its attempts.
    place.is_again_within(&before, Duration::from_secs(60)).await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn a_port_of_a_killed_client_is_free_once_its_service_is_restored() {
    let place = Place::new().await;
    let before = place.objects();
    let other = format!("\nbo {}", crate::relay::SECRET.replace(' ', "-"));
    let relay = place.relay_with("one", "a", &other, None).await;
    let mut killed = Laptop::connect(&relay).await;
    let port = killed.take("web.shop:80").await.unwrap();
    drop(killed);
    place.is_again(&before).await;
    let mut bo = Laptop::connect_as(&relay, "bo").await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        bo.send(Frame::Open { tunnel: 1, kind: Kind::Tcp, port, resume: [0; 16], name: String::new() }).await;
        match bo.frame().await {
            Frame::Opened { .. } => break,
            other => assert!(tokio::time::Instant::now() < deadline, "{other:?}"),
        }
        sleep(Duration::from_millis(200)).await;
    }
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn a_takeover_that_is_lost_while_the_api_server_is_silent_can_be_claimed_again() {
    let place = Place::new().await;
    let before = place.objects();
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    laptop.take("web.shop:80").await.unwrap();
    place.demo.faults().judge(Some(Box::new(|_, _| Some(Mishap::Answer(503)))));
    // Longer than a Lease is valid.
    let silent = async { while !matches!(laptop.frame().await, Frame::Refused { .. } | Frame::Goodbye { .. }) {} };
    tokio::time::timeout(Duration::from_secs(45), silent).await.unwrap_err();
    // Another relay has restored the Service meanwhile.
    place.demo.world().put("services", before["services shop/web"].clone());
    place.demo.faults().judge(None);
    let told = tokio::time::timeout(Duration::from_secs(60), laptop.frame()).await.expect("the client is told");
    let Frame::Goodbye { reason } = told else { panic!("{told:?}") };
    assert!(reason.contains("the API server did not answer for "), "{reason}");
    drop(laptop);
    let mut again = Laptop::connect(&relay).await;
    again.take("web.shop:80").await.unwrap();
    again.goodbye().await;
    place.relay_ends(relay).await;
}
