//! The number of connections to an API server, and their use.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use adit::demo::faults::Mishap;
use tokio::time::sleep;

use crate::support::{TestApp, eventually};

/// Waits until there is a spare connection beside the one of the requests.
async fn spare_is_there(app: &TestApp, seen: u64) {
    eventually("a spare connection is dialled", || async { app.demo.faults().connections_seen() >= seen }).await;
    eventually("and stays", || async { app.demo.faults().connections_open() == 2 }).await;
    assert_eq!(app.demo.faults().connections_seen(), seen, "no more than are needed");
}

#[tokio::test]
async fn a_first_visit_finds_a_connection_where_the_context_is_in_use() {
    let app = TestApp::start("").await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(app.demo.faults().connections_seen(), 0, "none for a context that is not used");
    assert_eq!(app.get("web.shop.localhost", "/whoami").await.0, 200);
    // The connection of the requests, the upgraded one, and the spare one.
    spare_is_there(&app, 3).await;
    assert_eq!(app.get("tools.shop.localhost", "/").await.0, 200);
    assert_eq!(app.demo.faults().upgrades_seen(), 2);
    // The spare one was upgraded, and a new spare replaced it.
    spare_is_there(&app, 4).await;
    app.finish().await;
}

#[tokio::test]
async fn a_spare_connection_that_was_lost_costs_nobody_an_answer() {
    for mishap in [Mishap::Hang, Mishap::Lose] {
        let app = TestApp::start("").await;
        let faults = app.demo.faults();
        assert_eq!(app.get("web.shop.localhost", "/whoami").await.0, 200);
        spare_is_there(&app, 3).await;
        let asked = AtomicU64::new(0);
        faults.judge(Some(Box::new(move |_, path| {
            let is_first = path.ends_with("/portforward") && asked.fetch_add(1, Ordering::SeqCst) == 0;
            is_first.then_some(mishap)
        })));
        assert_eq!(app.get("tools.shop.localhost", "/").await.0, 200, "{mishap:?}");
        assert_eq!(faults.requests_seen("/portforward"), 3, "{mishap:?}");
        // adit has not changed the transport: the demo would refuse another one now.
        faults.spdy_only(true);
        assert_eq!(app.get("81.tools.shop.localhost", "/").await.0, 200, "{mishap:?}");
        assert_eq!(faults.requests_seen("/portforward"), 4, "{mishap:?}");
        app.finish().await;
    }
}

#[tokio::test]
async fn watches_share_the_connection_of_the_requests_while_it_has_room() {
    let app = TestApp::start("").await;
    for host in ["web.shop.localhost", "tools.shop.localhost"] {
        assert_eq!(app.get(host, "/").await.0 / 100, 2, "{host}");
    }
    eventually("both are watched", || async { app.demo.faults().requests_seen("/endpointslices") == 4 }).await;
    eventually("one connection, and a spare one", || async { app.demo.faults().connections_open() == 2 }).await;
    app.finish().await;
}
