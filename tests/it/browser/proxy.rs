//! Browsers that use the PAC file.

use serde_json::json;

use super::{chromium::Chromium, firefox::Firefox};
use crate::support::TestApp;

const URL: &str = "http://web.shop.svc.cluster.local/whoami";

#[tokio::test]
async fn chromium_shows_services_by_their_names_in_the_cluster() {
    let app = TestApp::start("").await;
    let mut browser = Chromium::start_for(None, &[&format!("--proxy-pac-url=http://{}/proxy.pac", app.http)]).await;
    let mut page = browser.page().await;
    page.goto(URL).await;
    assert!(page.text().await.starts_with("web-6d5f-"));
    assert_eq!(page.eval("location.href").await, json!(URL));
    page.eval("document.cookie = 'seen=1; path=/'").await;
    page.goto(URL).await;
    assert_eq!(page.eval("document.cookie").await, json!("seen=1"));
    // A page of another site cannot change anything.
    let foreign = "fetch('http://tools.shop.svc.cluster.local/', {method: 'POST', mode: 'no-cors'}).then(() => 'sent', () => 'failed')";
    page.eval(foreign).await;
    assert_eq!(app.demo.faults().requests_seen("/services/tools"), 0, "the guard holds");
}

#[tokio::test]
async fn firefox_shows_services_by_their_names_in_the_cluster() {
    let app = TestApp::start("").await;
    let home = tempfile::tempdir().unwrap();
    let pac = format!("http://{}/proxy.pac", app.http);
    // 2: use the PAC file of this URL.
    let preferences = [("network.proxy.type", json!(2)), ("network.proxy.autoconfig_url", json!(pac))];
    let Some(mut browser) = Firefox::start(home.path(), home.path(), &preferences).await else {
        // Firefox is not on every machine.
        return;
    };
    let shown = browser.open(URL).await;
    assert!(shown.as_ref().is_ok_and(|text| text.starts_with("web-6d5f-")), "{shown:?}");
}
