//! The demo cluster with injected faults, as clients see it.

use crate::support::TestApp;

#[tokio::test]
async fn a_status_that_the_demo_is_told_to_give_reaches_the_page() {
    let app = TestApp::start("").await;
    for (code, status, words) in [(401, 502, "cannot sign in to context demo"), (400, 502, "400")] {
        app.demo.faults().answer("/services/web", Some(code));
        let (found, body) = app.get("web.shop.localhost", "/").await;
        assert_eq!(found, status, "{body}");
        assert!(body.contains(words), "{body}");
        app.demo.faults().answer("/services/web", None);
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    }
    assert_eq!(app.get("web.shop.localhost", "/whoami").await.0, 200);
    app.finish().await;
}

#[tokio::test]
async fn many_first_connections_share_a_few_upgrades() {
    let app = TestApp::start("").await;
    let requests = (0..40).map(|_| app.get("web.shop.localhost", "/whoami"));
    for (status, body) in futures::future::join_all(requests).await {
        assert_eq!(status, 200, "{body}");
    }
    assert!(app.demo.faults().upgrades_seen() <= 8, "{}", app.demo.faults().upgrades_seen());
    app.finish().await;
}
