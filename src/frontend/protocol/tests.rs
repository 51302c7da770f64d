use std::time::Duration;

use super::*;
use crate::{
    config::HttpOptions,
    routing::{ClusterId, PodTarget},
    tunnel::ServicePort,
};

fn route(scheme: Option<Scheme>) -> Route {
    let target = PodTarget {
        cluster: ClusterId { kubeconfig: Arc::default(), context: "dev".parse().unwrap() },
        namespace: "shop".parse().unwrap(),
        workload: Workload::Service("web".parse().unwrap()),
        port: PortRef::Auto,
        jump: None,
    };
    Route {
        name: "web.shop.localhost".into(),
        target: Target::Pods(Arc::new(target)),
        idle_timeout: Duration::ZERO,
        options: Arc::new(HttpOptions { scheme, ..HttpOptions::default() }),
    }
}

fn endpoint(number: u16, name: Option<&str>) -> Arc<Endpoint> {
    let port = ServicePort { number, name: name.map(str::to_owned), app_protocol: None };
    Arc::new(Endpoint { pod: "web-0".into(), container_port: 1, port, protocol: "test" })
}

fn request(version: Version, kind: &str) -> Request<()> {
    Request::builder().version(version).header(CONTENT_TYPE, kind).body(()).unwrap()
}

#[test]
fn what_a_request_needs_is_in_its_version_and_content_type() {
    for (version, kind, tls, is_upgrade, asks) in [
        (Version::HTTP_2, "application/grpc", true, false, Asks::Grpc),
        (Version::HTTP_2, "application/grpc+proto", false, false, Asks::Grpc),
        (Version::HTTP_2, "application/grpc-web", true, false, Asks::Http),
        (Version::HTTP_2, "text/plain", false, false, Asks::Http2),
        (Version::HTTP_2, "text/plain", false, true, Asks::Upgrade),
        (Version::HTTP_11, "application/grpc", false, false, Asks::Http),
    ] {
        assert_eq!(Asks::of(&request(version, kind), tls, is_upgrade), asks, "{version:?} {kind} {tls} {is_upgrade}");
    }
}

#[test]
fn hints_come_first_and_where_there_are_none_the_client_decides() {
    let protocols = Protocols::default();
    for (number, name, asks, scheme) in [
        (80, Some("http"), Asks::Http, Scheme::Http),
        (80, Some("http"), Asks::Http2, Scheme::Http),
        (80, Some("http"), Asks::Grpc, Scheme::H2c),
        (443, None, Asks::Grpc, Scheme::Https),
        (50051, None, Asks::Http2, Scheme::H2c),
        (50051, None, Asks::Http, Scheme::Http),
        (50051, None, Asks::Upgrade, Scheme::Http),
        (1, Some("grpc"), Asks::Http, Scheme::H2c),
    ] {
        let choice = protocols.choose(&route(None), &endpoint(number, name), asks);
        assert_eq!(
            choice,
            Choice { scheme, is_fixed: false, is_known: false, is_http1: false },
            "{number} {name:?} {asks:?}"
        );
    }
    let choice = protocols.choose(&route(Some(Scheme::Http)), &endpoint(443, None), Asks::Grpc);
    assert_eq!(choice, Choice { scheme: Scheme::Http, is_fixed: true, is_known: true, is_http1: false });
}

#[test]
fn what_was_learned_counts_for_one_session_and_one_kind_of_request() {
    let (protocols, route, first) = (Protocols::default(), route(None), endpoint(80, Some("http")));
    let chosen = |session, asks| {
        let choice = protocols.choose(&route, session, asks);
        (choice.scheme, choice.is_known)
    };
    protocols.learn(&route, &first, Asks::Grpc, Scheme::H2c);
    assert_eq!(chosen(&first, Asks::Grpc), (Scheme::H2c, true));
    assert_eq!(chosen(&first, Asks::Http), (Scheme::Http, false));
    protocols.learn(&route, &first, Asks::Upgrade, Scheme::Http);
    assert_eq!(chosen(&first, Asks::Http), (Scheme::Http, false));
    protocols.learn(&route, &first, Asks::Http, Scheme::Http);
    assert_eq!(chosen(&first, Asks::Http2), (Scheme::Http, true));
    assert!(protocols.wrong_hints().is_empty());
    // Another session may have other pods.
    let second = endpoint(80, Some("http"));
    assert_eq!(chosen(&second, Asks::Grpc), (Scheme::H2c, false));
    protocols.learn(&route, &second, Asks::Http, Scheme::Https);
    assert_eq!(chosen(&second, Asks::Grpc), (Scheme::Https, true));
    assert_eq!(protocols.speaks_tls(&route, &second), SpeaksTls::Yes);
    assert_eq!(
        protocols.wrong_hints(),
        ["port 80 of dev/shop/web speaks https, and its name is \"http\": set scheme: https in http.k8s.routes: \
            {\"web.shop.localhost\": {namespace: shop, service: web, port: 80, scheme: https}}"]
    );
    drop(second);
    assert!(protocols.wrong_hints().is_empty());
}

#[test]
fn what_was_learned_counts_for_each_target_that_means_the_same_port() {
    let (protocols, by_http) = (Protocols::default(), route(None));
    let (by_https, by_number) = (by_http.clone().for_client(true), by_http.clone().for_port(443));
    let [first, second, other_port] = [443, 443, 8443].map(|number| endpoint(number, None));
    assert_eq!(protocols.speaks_tls(&by_https, &second), SpeaksTls::Perhaps { is_hinted: true });
    protocols.learn(&by_http, &first, Asks::Http, Scheme::Http);
    for route in [&by_https, &by_number] {
        assert_eq!(protocols.speaks_tls(route, &second), SpeaksTls::No);
        assert_eq!(protocols.choose(route, &second, Asks::Http).scheme, Scheme::Http);
    }
    assert_eq!(protocols.speaks_tls(&by_https, &other_port), SpeaksTls::Perhaps { is_hinted: false });
    // The pods may be others now.
    drop(first);
    assert_eq!(protocols.speaks_tls(&by_https, &second), SpeaksTls::Perhaps { is_hinted: true });
}

#[test]
fn a_client_of_tls_is_passed_through_where_the_port_may_speak_it() {
    let protocols = Protocols::default();
    let tls = |scheme, number, name| protocols.speaks_tls(&route(scheme), &endpoint(number, name));
    assert_eq!(tls(None, 443, None), SpeaksTls::Perhaps { is_hinted: true });
    assert_eq!(tls(None, 9443, None), SpeaksTls::Perhaps { is_hinted: false });
    assert_eq!(tls(None, 443, Some("http")), SpeaksTls::No);
    assert_eq!(tls(None, 1, Some("grpc")), SpeaksTls::No);
    assert_eq!(tls(Some(Scheme::Https), 80, Some("http")), SpeaksTls::Yes);
    assert_eq!(tls(Some(Scheme::Http), 443, None), SpeaksTls::No);
}

#[test]
fn what_is_tried_instead_is_never_what_failed_and_never_h2c_for_an_upgrade() {
    let said = [Sniff::NeedMore, Sniff::Unknown]
        .into_iter()
        .chain([Protocol::Tls, Protocol::Http1, Protocol::Http2, Protocol::Postgres, Protocol::Socks5].map(Sniff::Is));
    for said in said {
        for asks in [Asks::Http, Asks::Http2, Asks::Grpc, Asks::Upgrade] {
            for spoke in [Scheme::Http, Scheme::Https, Scheme::H2c] {
                let others = others(spoke, said, asks);
                assert!(!others.contains(&spoke), "{spoke:?} {said:?} {asks:?}");
                assert!(asks != Asks::Upgrade || !others.contains(&Scheme::H2c), "{spoke:?} {said:?}");
            }
        }
    }
    assert_eq!(others(Scheme::Http, Sniff::Is(Protocol::Tls), Asks::Http), [Scheme::Https]);
    assert_eq!(others(Scheme::Http, Sniff::Is(Protocol::Http2), Asks::Http), [Scheme::H2c]);
    assert_eq!(others(Scheme::Http, Sniff::Unknown, Asks::Http), []);
    assert_eq!(others(Scheme::Https, Sniff::Is(Protocol::Tls), Asks::Http), []);
}

#[test]
fn servers_say_that_they_want_tls_or_http2() {
    let nginx = b"<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head>";
    assert_eq!(wanted(nginx), Some(Scheme::Https));
    assert_eq!(wanted(b"Client sent an HTTP request to an HTTPS server.\n"), Some(Scheme::Https));
    assert_eq!(wanted(b"An HTTP/1.x request was sent to an HTTP/2 only endpoint."), Some(Scheme::H2c));
    assert_eq!(wanted(b"\xff bad request"), None);
}

#[test]
fn advice_for_a_name_with_a_context_keeps_the_context() {
    let of = |name: &str| fix(&Route { name: name.into(), ..route(None) }, &endpoint(80, None), Scheme::Https);
    let with =
        "{\"web.shop.dev.cx.localhost\": {context: \"dev\", namespace: shop, service: web, port: 80, scheme: https}}";
    assert!(of("web.shop.dev.cx.localhost").ends_with(with), "{}", of("web.shop.dev.cx.localhost"));
    assert!(!of("web.shop.localhost").contains("context"));
}

#[test]
fn a_backend_that_has_never_answered_is_not_probed_again_at_once() {
    let (protocols, route, endpoint) = (Protocols::default(), route(None), endpoint(9000, None));
    assert!(!protocols.was_asked_in_vain(&route, &endpoint));
    protocols.asked_in_vain(&route, &endpoint);
    assert!(protocols.was_asked_in_vain(&route, &endpoint));
    assert!(!protocols.choose(&route, &endpoint, Asks::Http).is_known);
}
