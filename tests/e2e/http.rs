//! HTTP in every form, from curl to nginx in a pod.

use std::{fs, thread, time::Duration};

use futures::{SinkExt, StreamExt};
use sha2::{Digest, Sha256};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Adit, COLD_SERVICES, kubectl, ready_pods, run, succeed};

#[test]
fn a_service_is_reached_by_its_short_name() {
    let adit = Adit::plain();
    let pod = adit.get(&format!("http://80.{}/whoami", adit.host("web")));
    assert!(ready_pods("web").contains(&pod.trim().to_owned()), "{pod}");
}

#[test]
fn the_port_named_http_is_meant_where_none_is_given() {
    let adit = Adit::plain();
    assert!(adit.get(&format!("http://{}/whoami", adit.host("web"))).starts_with("web-"));
}

#[test]
fn a_service_is_reached_by_its_long_name() {
    let adit = Adit::plain();
    let context = kubectl(&["config", "current-context"]);
    let host = format!("web-http.svc.adit-e2e.ns.{}.cx.k8s.localhost", context.trim());
    assert!(adit.get(&format!("http://{host}/whoami")).starts_with("web-"));
}

#[test]
fn a_pod_is_reached_by_its_name() {
    let adit = Adit::plain();
    let pod = ready_pods("web").remove(0);
    assert_eq!(adit.get(&format!("http://80.{pod}.{}/whoami", adit.host("web"))).trim(), pod);
}

#[test]
fn a_static_route_is_reached() {
    let adit = Adit::start(
        "http:\n  listen: \"@HTTP@\"\n  k8s:\n    routes:\n      Shop.localhost: {namespace: adit-e2e, service: web, port: http}",
    );
    assert!(adit.get("http://shop.localhost/whoami").starts_with("web-"));
}

#[test]
fn what_the_backend_is_told_of_the_client_is_ours() {
    let adit = Adit::plain();
    let host = adit.host("web");
    let seen =
        succeed(&mut adit.curl(&["-f", "-H", "X-Forwarded-For: 6.6.6.6", &format!("http://{host}:8989/headers")]));
    assert!(seen.contains(&format!("host={host}:8989 ")), "{seen}");
    assert!(seen.contains("xff=127.0.0.1 "), "{seen}");
    assert!(seen.contains(&format!("xfh={host}:8989 ")), "{seen}");
    assert!(seen.contains("xfp=http "), "{seen}");
    assert!(!seen.contains("6.6.6.6"), "{seen}");
}

#[test]
fn h2c_is_spoken_in_front_and_behind() {
    let adit = Adit::plain();
    let host = adit.host("web");
    let through = |arguments: &[&str], port| {
        succeed(&mut adit.curl(&[arguments, &["-f", &format!("http://{port}.{host}/headers")]].concat()))
    };
    assert!(through(&["--http2-prior-knowledge"], 81).contains("proto=HTTP/2.0"));
    assert!(through(&["--http1.1"], 81).contains("proto=HTTP/2.0"));
    assert!(through(&["--http2-prior-knowledge"], 80).contains("proto=HTTP/1.1"));
}

#[test]
fn https_backends_are_spoken_to_over_tls() {
    let adit = Adit::plain();
    let seen = adit.get(&format!("http://443.{}/headers", adit.host("web")));
    assert!(seen.contains(&format!("sni=443.{}", adit.host("web"))), "{seen}");
}

#[test]
fn tls_goes_through_by_sni_to_the_backends_own_certificate() {
    let adit = Adit::plain();
    let host = format!("443.{}", adit.host("web"));
    let seen = succeed(&mut adit.curl(&["-fk", &format!("https://{host}/headers")]));
    assert!(seen.contains(&format!("sni={host}")) && seen.contains("xff= "), "{seen}");
    let connect = format!("127.0.0.1:{}", adit.http);
    let certificate =
        succeed(std::process::Command::new("openssl").args(["s_client", "-connect", &connect, "-servername", &host]));
    assert!(certificate.contains("CN = backend.test"), "{certificate}");
}

#[test]
fn an_unknown_name_over_tls_is_an_error_page() {
    let adit = Adit::plain();
    let output = succeed(&mut adit.curl(&["-k", "-w", "%{http_code}", "https://nobody.knows.this.name/"]));
    assert!(output.ends_with("404"), "{output}");
}

#[test]
fn an_unknown_service_is_a_404_that_names_it() {
    let adit = Adit::plain();
    let output = succeed(&mut adit.curl(&["-w", "%{http_code}", &format!("http://{}/", adit.host("wbe"))]));
    assert!(output.contains("service adit-e2e/wbe") && output.contains("web") && output.ends_with("404"), "{output}");
}

#[test]
fn bodies_arrive_whole_in_both_directions() {
    let adit = Adit::plain();
    let pod = ready_pods("web").remove(0);
    let host = format!("80.{pod}.{}", adit.host("web"));
    let file = adit.folder().join("100m");
    succeed(&mut adit.curl(&["-f", "-o", file.to_str().unwrap(), &format!("http://{host}/100m")]));
    let here = Sha256::digest(fs::read(&file).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let there = kubectl(&["-n", "adit-e2e", "exec", &pod, "--", "sha256sum", "/run/www/100m"]);
    assert!(there.starts_with(here.as_str()), "{there} is not {here}");
    let sent = succeed(&mut adit.curl(&[
        "-f",
        "-T",
        file.to_str().unwrap(),
        "-w",
        "%{http_code} %{size_upload}",
        &format!("http://{host}/upload"),
    ]));
    assert_eq!(sent, "204 104857600");
}

#[test]
fn fifty_services_are_reached_for_the_first_time_at_once() {
    let adit = Adit::plain();
    thread::scope(|scope| {
        for number in 0..COLD_SERVICES {
            let adit = &adit;
            scope.spawn(move || {
                let url = format!("http://{}/whoami", adit.host(&format!("cold-{number}")));
                assert!(adit.get(&url).starts_with("web-"), "{url}");
            });
        }
    });
}

#[tokio::test]
async fn websocket_messages_come_back() {
    let adit = Adit::plain();
    let url = format!("ws://7001.{}:{}/", adit.host("echo"), adit.http);
    let stream = tokio::net::TcpStream::connect(adit.address()).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(&url, stream).await.unwrap();
    for message in [Message::text("hello"), Message::binary(vec![7u8; 300]), Message::binary(vec![9u8; 200_000])] {
        socket.send(message.clone()).await.unwrap();
        let back = tokio::time::timeout(Duration::from_secs(20), socket.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(back, message);
    }
    socket.close(None).await.unwrap();
}

#[test]
fn a_request_in_progress_is_finished_before_the_end() {
    let adit = Adit::plain();
    let url = format!("http://80.{}/100m", adit.host("web"));
    let mut download = adit.curl(&["-f", "-o", "/dev/null", "--limit-rate", "40M", &url]).spawn().unwrap();
    crate::support::eventually("the download runs", Duration::from_secs(10), || {
        adit.tunnels().iter().any(|tunnel| tunnel["bytes_down"].as_u64().unwrap() > 1_000_000)
    });
    let (status, log) = adit.finish();
    assert!(download.wait().unwrap().success(), "{log}");
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn the_silent_are_not_waited_for_at_the_end() {
    let adit = Adit::plain();
    let _silent = std::net::TcpStream::connect(adit.address()).unwrap();
    let started = std::time::Instant::now();
    let (status, _) = adit.finish();
    assert_eq!(status.code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(9), "a client that never spoke held the end up");
}

#[test]
fn a_second_adit_on_the_same_port_says_so() {
    let adit = Adit::plain();
    let output = run(std::process::Command::new(env!("CARGO_BIN_EXE_adit"))
        .arg("--config")
        .arg(adit.config())
        .env("XDG_RUNTIME_DIR", adit.folder()));
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("already in use"), "{text}");
}
