//! A headless Firefox, driven through WebDriver BiDi.

use std::{path::Path, process::Stdio, time::Duration};

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

/// Time limit of any action of a page, on a busy machine. The first start takes longest.
const PATIENCE: Duration = Duration::from_secs(60);

/// Names of the program on different platforms.
const PROGRAMS: [&str; 2] = ["firefox", "firefox-esr"];

/// A running browser with one tab.
pub struct Firefox {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    last_id: u64,
    tab: Value,
    _child: Child,
}

impl Firefox {
    /// Starts Firefox with these preferences, in a profile below a home folder. `None`: it is not installed.
    pub async fn start(home: &Path, profile: &Path, preferences: &[(&str, Value)]) -> Option<Self> {
        let line = |(name, value): &(&str, Value)| format!("user_pref(\"{name}\", {value});\n");
        let preferences: String = preferences.iter().map(line).collect();
        std::fs::write(profile.join("user.js"), preferences).expect("a profile");
        let mut child = PROGRAMS.into_iter().find_map(|program| {
            let mut command = Command::new(program);
            command.args(["--headless", "--no-remote", "--remote-debugging-port", "0", "--profile"]).arg(profile);
            command.env("HOME", home).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
            command.spawn().ok()
        })?;
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let address = async {
            loop {
                let line = lines.next_line().await.expect("its messages").expect("it says where it listens");
                if let Some((_, address)) = line.split_once("WebDriver BiDi listening on ") {
                    return address.to_owned();
                }
            }
        };
        let address = timeout(PATIENCE, address).await.expect("it starts");
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let (socket, _) = connect_async(format!("{address}/session")).await.expect("its socket");
        let mut browser = Self { socket, last_id: 0, tab: Value::Null, _child: child };
        let strict = json!({"capabilities": {"alwaysMatch": {"acceptInsecureCerts": false}}});
        browser.call("session.new", strict).await.expect("a session");
        let tree = browser.call("browsingContext.getTree", json!({})).await.expect("a tab");
        browser.tab = tree["contexts"][0]["context"].clone();
        Some(browser)
    }

    /// Goes to an address, and returns the text of the page, or Firefox's error.
    pub async fn open(&mut self, address: &str) -> Result<String, String> {
        let tab = self.tab.clone();
        self.call("browsingContext.navigate", json!({"context": tab, "url": address, "wait": "complete"})).await?;
        let text = json!({"expression": "document.body.innerText", "target": {"context": tab}, "awaitPromise": false});
        let found = self.call("script.evaluate", text).await?;
        Ok(found["result"]["value"].as_str().unwrap_or_default().to_owned())
    }

    async fn call(&mut self, method: &str, params: Value) -> Result<Value, String> {
        self.last_id += 1;
        let id = self.last_id;
        let message = json!({"id": id, "method": method, "params": params});
        self.socket.send(Message::text(message.to_string())).await.expect("it runs");
        loop {
            let message = timeout(PATIENCE, self.socket.next()).await.expect("a word in time").expect("it runs");
            let answer: Value = serde_json::from_str(message.expect("it runs").to_text().expect("text")).expect("JSON");
            if answer["id"] == id {
                return match answer["type"].as_str() {
                    Some("success") => Ok(answer["result"].clone()),
                    _ => Err(answer["message"].as_str().unwrap_or_default().to_owned()),
                };
            }
        }
    }
}
