//! https without warnings, checked with the browsers.

use std::fs;

use serde_json::json;

use super::{chromium::Chromium, firefox::Firefox};
use crate::{
    process::Process,
    trust::{LOCAL, NAMES, STOLEN, server, takes_up},
};

#[tokio::test]
async fn chromium_trusts_local_names_alone() {
    let person = Process::start("", &[]).await;
    let home = person.home();
    let options = [&*format!("--host-resolver-rules=MAP {STOLEN} 127.0.0.1")];
    let port = person.http.port();
    let mut before = Chromium::start_for(Some(home), &options).await;
    let refused = before.page().await.try_goto(&format!("https://{}:{port}/", NAMES[0])).await;
    assert_eq!(refused, Err("net::ERR_CERT_AUTHORITY_INVALID".to_owned()), "without a CA");
    drop(before);
    let (is_installed, said) = person.shell("adit trust install").await;
    assert!(is_installed && said.contains("trusts    Chromium"), "certutil is needed: {said}");
    takes_up(&person).await;
    let mut browser = Chromium::start_for(Some(home), &options).await;
    let mut page = browser.page().await;
    let of_local = server(home, LOCAL).await;
    for (name, port) in [(NAMES[0], port), (NAMES[1], port), (LOCAL, of_local)] {
        page.goto(&format!("https://{name}:{port}/")).await;
        assert_eq!(page.eval("isSecureContext").await, true, "{name}: {}", page.text().await);
    }
    page.goto(&format!("https://{}:{port}/", NAMES[0])).await;
    assert_eq!(page.eval("performance.getEntriesByType('navigation')[0].nextHopProtocol").await, "h2");
    let of_thief = server(home, STOLEN).await;
    let refused = page.try_goto(&format!("https://{STOLEN}:{of_thief}/")).await;
    assert!(refused.as_ref().is_err_and(|error| error.starts_with("net::ERR_CERT_")), "{refused:?}");
}

#[tokio::test]
async fn firefox_trusts_local_names_alone() {
    let person = Process::start("", &[]).await;
    let home = person.home();
    let profile = home.join(".mozilla/firefox/a.default");
    fs::create_dir_all(&profile).unwrap();
    let create = "certutil -N --empty-password -d sql:.mozilla/firefox/a.default";
    let (is_created, said) = person.shell(create).await;
    assert!(is_created, "certutil is needed: {said}");
    let port = person.http.port();
    // Firefox resolves this name to this machine.
    let here = [("network.dns.localDomains", json!(STOLEN))];
    let Some(mut before) = Firefox::start(home, &profile, &here).await else {
        // Firefox is not on every machine.
        return;
    };
    let refused = before.open(&format!("https://{}:{port}/", NAMES[0])).await;
    assert!(refused.is_err(), "without a CA: {refused:?}");
    drop(before);
    let (is_installed, said) = person.shell("adit trust install").await;
    assert!(is_installed && said.contains("trusts    Firefox"), "{said}");
    takes_up(&person).await;
    let mut browser = Firefox::start(home, &profile, &here).await.expect("it was there");
    let of_local = server(home, LOCAL).await;
    for (name, port) in [(NAMES[0], port), (NAMES[1], port), (LOCAL, of_local)] {
        let opened = browser.open(&format!("https://{name}:{port}/")).await;
        assert!(opened.as_ref().is_ok_and(|text| !text.is_empty()), "{name}: {opened:?}");
    }
    let of_thief = server(home, STOLEN).await;
    let refused = browser.open(&format!("https://{STOLEN}:{of_thief}/")).await;
    assert!(refused.is_err(), "{refused:?}");
}
