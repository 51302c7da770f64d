//! Two laptops and the pods share one port of a Service.

use std::process::Command;

use super::{Expose, NAMESPACE, Relays, are_again, curl, eventually, laptop_of, objects, succeed};
use std::time::Duration;

/// Returns who answers a request with this header.
fn who(user: Option<&str>) -> String {
    let url = format!("http://web.{NAMESPACE}/whoami");
    let header = user.map(|user| format!("x-user: {user}"));
    let header: Vec<&str> = header.iter().flat_map(|header| ["-H", header.as_str()]).collect();
    curl(&[&header[..], &[&url]].concat()).trim().to_owned()
}

fn answers(user: &str, is_laptop: bool) {
    eventually(&format!("{user}, laptop: {is_laptop}"), Duration::from_secs(60), || {
        let answer = who(Some(user));
        (answer == user) == is_laptop && !answer.is_empty()
    });
}

#[test]
#[ignore = "it takes over a Service that the other tests use: cargo test --features e2e --test e2e expose:: -- --ignored"]
fn requests_are_told_apart_and_every_object_is_as_before_at_the_end() {
    let relays = Relays::start();
    eventually("a pod answers", Duration::from_secs(60), || who(None).starts_with("web-"));
    let before = objects();
    let as_web = format!("web.{NAMESPACE}");
    let take = |whose: &'static str| {
        let port = format!("{}:80", laptop_of(whose));
        let expose = Expose::start(&[&port, "--as", &as_web, "--personal", &format!("x-user={whose}")]);
        expose.said(&format!("web.{NAMESPACE}:80 in "));
        expose
    };
    // Through one relay of three, whichever comes first.
    let (anna, bo) = (take("anna"), take("bo"));
    // kube-proxy goes on sending some to the pods for a moment.
    eventually("nobody passes the relay by", Duration::from_secs(60), || {
        (0..6).all(|_| who(Some("anna")) == "anna" && who(Some("bo")) == "bo")
    });
    for _ in 0..5 {
        assert_eq!((who(Some("anna")).as_str(), who(Some("bo")).as_str()), ("anna", "bo"));
        for other in [None, Some("Anna"), Some("carl")] {
            let answer = who(other);
            assert!(answer.starts_with("web-"), "{other:?}: {answer}");
        }
    }
    // On one connection.
    let url = format!("http://web.{NAMESPACE}/whoami");
    let count = ["-w", " %{num_connects}\n"];
    let first = [&count[..], &[&url]].concat();
    let second = [&["--next", "-s", "-H", "x-user: bo"], &count[..], &[&url]].concat();
    let both = curl(&[first, second].concat());
    let lines: Vec<Vec<&str>> = both.lines().map(|line| line.split_whitespace().collect()).collect();
    let lines: Vec<_> = lines.into_iter().filter(|line| !line.is_empty()).collect();
    let all: Vec<&str> = lines.iter().flatten().copied().collect();
    assert!(all[0].starts_with("web-") && all[1..] == ["1", "bo", "0"], "{both}");
    // TLS at another port, and TLS that the relay cannot read at this one, are the pods'.
    let https = curl(&["-k", &format!("https://web.{NAMESPACE}/whoami")]);
    assert!(https.starts_with("web-"), "{https}");

    let equal = Expose::start(&["1:80", "--as", &as_web, "--personal", "x-user=anna"]);
    let (code, said) = equal.ends();
    assert!(code == Some(1) && said.contains("requests with x-user: anna to port 80"), "{said}");
    let whole = Expose::start(&["1:80", "--as", &as_web, "--replace"]);
    let (code, said) = whole.ends();
    assert!(code == Some(1) && said.contains("is taken over in part"), "{said}");
    let listed = succeed(Command::new(env!("CARGO_BIN_EXE_adit")).args(["expose", "ls", "-n", NAMESPACE]));
    assert!(listed.contains("x-user: anna") && listed.contains("x-user: bo"), "{listed}");

    // One is killed, and the other one goes on.
    drop(anna);
    answers("anna", false);
    answers("bo", true);
    bo.interrupt();
    assert_eq!(bo.ends().0, Some(0));
    answers("bo", false);
    are_again(&before);
    drop(relays);
}
