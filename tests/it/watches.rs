//! Watches that stall, end at once, or expire.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::support::{TestApp, eventually};

const SLICES: &str = "/endpointslices";

/// Makes `web-6d5f-a1` ready or not.
fn set_ready(app: &TestApp, is_ready: bool) {
    let mut pod = (*app.demo.world().get("pods", "shop", "web-6d5f-a1").unwrap()).clone();
    pod["status"]["containerStatuses"][0]["ready"] = json!(is_ready);
    app.demo.world().put("pods", pod);
}

async fn pods_that_answer(app: &TestApp) -> std::collections::BTreeSet<String> {
    let asked = (0..8).map(|_| app.get("web.shop.localhost", "/whoami"));
    futures::future::join_all(asked).await.into_iter().map(|(_, pod)| pod.trim().to_owned()).collect()
}

/// Waits until the pod that is not ready gets no requests.
async fn notices_a_change(app: &TestApp) {
    set_ready(app, false);
    eventually("the pod that is not ready gets no request", || async {
        pods_that_answer(app).await == ["web-6d5f-b2".to_owned()].into()
    })
    .await;
}

#[tokio::test]
async fn a_server_that_ends_watches_at_once_is_asked_less_and_less_often() {
    let app = TestApp::start("").await;
    app.demo.faults().cut_watches(true);
    assert_eq!(app.get("web.shop.localhost", "/whoami").await.0, 200);
    sleep(Duration::from_secs(3)).await;
    let asked = app.demo.faults().requests_seen(SLICES);
    assert!((3..=9).contains(&asked), "{asked} requests in 3 s");
    app.demo.faults().cut_watches(false);
    notices_a_change(&app).await;
    app.finish().await;
}

#[tokio::test]
async fn a_watch_that_gets_no_answer_hides_no_change() {
    let app = TestApp::start("").await;
    assert_eq!(app.get("web.shop.localhost", "/whoami").await.0, 200);
    let before = app.demo.faults().requests_seen(SLICES);
    app.demo.faults().delay(SLICES, Some(Duration::from_secs(120)));
    eventually("a watch hangs", || async {
        app.demo.faults().end_watches();
        app.demo.faults().requests_seen(SLICES) > before
    })
    .await;
    app.demo.faults().delay(SLICES, None);
    let started = Instant::now();
    notices_a_change(&app).await;
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    app.finish().await;
}

#[tokio::test]
async fn a_quiet_service_does_not_fall_behind_what_the_server_knows() {
    let app = TestApp::start("").await;
    assert_eq!(app.get("web.shop.localhost", "/whoami").await.0, 200);
    eventually("it is watched", || async { app.demo.faults().requests_seen(SLICES) == 2 }).await;
    for number in 0..4_200 {
        let event = json!({"metadata": {"namespace": "data", "name": "other"}, "message": number.to_string()});
        app.demo.world().put("events", event);
        if number % 100 == 0 {
            sleep(Duration::from_millis(2)).await;
        }
    }
    sleep(Duration::from_millis(200)).await;
    app.demo.faults().end_watches();
    eventually("it is watched again", || async { app.demo.faults().requests_seen(SLICES) > 2 }).await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(app.demo.faults().requests_seen(SLICES), 3, "it goes on where it was, without a list");
    notices_a_change(&app).await;
    app.finish().await;
}
