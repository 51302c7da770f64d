//! Replays the corpus of every fuzz target.

use std::{fs, path::Path};

#[path = "../fuzz/checks/mod.rs"]
mod checks;

fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut replayed = 0;
    for entry in fs::read_dir(&folder).expect("the corpus folder exists") {
        check(&fs::read(entry.expect("a readable folder").path()).expect("a readable file"));
        replayed += 1;
    }
    assert!(replayed > 0, "{} is empty", folder.display());
}

#[test]
fn carrier() {
    replay("carrier", checks::carrier::check);
}

#[test]
fn client_hello() {
    replay("client_hello", checks::client_hello::check);
}

#[test]
fn config() {
    replay("config", checks::config::check);
}

#[test]
fn dns() {
    replay("dns", checks::dns::check);
}

#[test]
fn exec_frames() {
    replay("exec_frames", checks::exec_frames::check);
}

#[test]
fn hostname() {
    replay("hostname", checks::hostname::check);
}

#[test]
fn sniff() {
    replay("sniff", checks::sniff::check);
}

#[test]
fn connect() {
    replay("connect", checks::connect::check);
}

#[test]
fn socks5() {
    replay("socks5", checks::socks5::check);
}

#[test]
fn spdy() {
    replay("spdy", checks::spdy::check);
}

#[test]
fn websocket() {
    replay("websocket", checks::websocket::check);
}

#[test]
fn http1() {
    replay("http1", checks::http1::check);
}

#[test]
fn postgres() {
    replay("postgres", checks::postgres::check);
}

#[test]
fn proxy_protocol() {
    replay("proxy_protocol", checks::proxy_protocol::check);
}

#[test]
fn relay() {
    replay("relay", checks::relay::check);
}
