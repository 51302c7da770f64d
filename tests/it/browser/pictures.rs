//! The pictures of the dashboard in the documentation: `just pictures` takes new ones.

use std::{fs, path::PathBuf, process::Stdio, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;
use tokio::{process::Command, time::sleep};

use super::{
    chromium::Chromium,
    dashboard::{VIEWS, press},
};
use crate::{
    process::environment,
    support::{eventually, ports::free_port},
};

/// Width and colour scheme of each picture.
const PICTURES: [(u16, &str); 6] =
    [(1440, "light"), (1440, "dark"), (800, "light"), (800, "dark"), (320, "light"), (320, "dark")];

/// How long the demo's traffic runs before: most of the five minutes of the charts.
const TRAFFIC: Duration = Duration::from_secs(200);

#[tokio::test]
#[ignore = "it takes the pictures of the documentation: just pictures"]
async fn of_every_view_of_the_demo() {
    let folder = PathBuf::from(std::env::var_os("ADIT_PICTURES").expect("the folder for the pictures"));
    let (home, port) = (tempfile::tempdir().unwrap(), free_port());
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    environment(&mut command, &home).args(["demo", "--listen", &format!("127.0.0.1:{port}")]);
    let _demo = command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let link = async || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
        let said = environment(&mut command, &home).args(["--listen", &port.to_string(), "ui", "--print"]);
        String::from_utf8(said.output().await.unwrap().stdout).unwrap().trim().to_owned()
    };
    eventually("the demo runs", || async { link().await.starts_with("http") }).await;
    sleep(TRAFFIC).await;
    let mut browser = Chromium::start("MAP evil.example 127.0.0.1").await;
    let mut page = browser.page().await;
    page.goto(&link().await).await;
    page.until("document.querySelector('.tiles') !== null").await;
    page.call("Emulation.setScrollbarsHidden", json!({"hidden": true})).await;
    for (width, scheme) in PICTURES {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        page.call("Emulation.setEmulatedMedia", features).await;
        let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        page.call("Emulation.setDeviceMetricsOverride", size).await;
        for (name, path) in VIEWS {
            page.goto(&format!("http://adit.localhost:{port}{path}")).await;
            page.until("document.querySelector('tbody tr') !== null").await;
            // Wait for the first events, and for additional requests of the page.
            sleep(Duration::from_secs(3)).await;
            if name == "requests" {
                press(&mut page, &["j", "j", "j", "Enter"]).await;
                page.until("!document.querySelector('aside').hidden && document.querySelector('svg.fall') !== null")
                    .await;
            }
            let shot = page.call("Page.captureScreenshot", json!({"format": "png"})).await;
            let bytes = BASE64_STANDARD.decode(shot["data"].as_str().unwrap()).unwrap();
            fs::write(folder.join(format!("{name}-{width}-{scheme}.png")), bytes).unwrap();
        }
    }
}
