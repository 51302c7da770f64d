//! A headless Chromium, driven through the Chrome DevTools Protocol.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::{sleep, timeout},
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

/// Time limit of any action of a page, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Names of the program on different platforms.
const PROGRAMS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];

/// A running browser.
pub struct Chromium {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    last_id: u64,
    /// Events that arrived before an awaited answer.
    events: Vec<Value>,
    _child: Child,
    _profile: TempDir,
    /// Whether it rejects certificates that its user's stores do not trust.
    is_strict: bool,
}

/// A tab.
pub struct Page<'b> {
    browser: &'b mut Chromium,
    target: String,
    session: String,
}

impl Chromium {
    /// Starts Chromium from `ADIT_CHROMIUM` or PATH; it accepts every certificate. `resolver`: value of `--host-resolver-rules`.
    pub async fn start(resolver: &str) -> Self {
        Self::start_for(None, &[&format!("--host-resolver-rules={resolver}")]).await
    }

    /// Starts Chromium with more options. `home`: home folder of a user whose stores decide about certificates; `None`: all are
    /// accepted.
    pub async fn start_for(home: Option<&Path>, options: &[&str]) -> Self {
        let profile = tempfile::tempdir().expect("a folder for its profile");
        let named = std::env::var("ADIT_CHROMIUM").ok();
        let programs = named.iter().map(String::as_str).chain(PROGRAMS);
        let mut child = programs
            .into_iter()
            .find_map(|program| {
                let mut command = Command::new(program);
                if let Some(home) = home {
                    command.env("HOME", home).env_remove("XDG_DATA_HOME").env_remove("XDG_CONFIG_HOME");
                }
                command
                    .args([
                        "--headless=new",
                        "--no-sandbox",
                        "--disable-gpu",
                        "--disable-dev-shm-usage",
                        "--no-first-run",
                    ])
                    .arg("--remote-debugging-port=0")
                    .args(options)
                    .arg(format!("--user-data-dir={}", profile.path().display()))
                    .arg("about:blank")
                    .stderr(Stdio::piped())
                    .kill_on_drop(true)
                    .spawn()
                    .ok()
            })
            .expect("a Chromium: install one, or name it in ADIT_CHROMIUM");
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let address = async {
            loop {
                let line = lines.next_line().await.expect("its messages").expect("it says where it listens");
                if let Some((_, address)) = line.split_once("DevTools listening on ") {
                    return address.to_owned();
                }
            }
        };
        let address = timeout(PATIENCE, address).await.expect("it starts");
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let (socket, _) = connect_async(address).await.expect("its socket");
        let is_strict = home.is_some();
        let mut browser = Self { socket, last_id: 0, events: Vec::new(), _child: child, _profile: profile, is_strict };
        if !is_strict {
            browser.call(None, "Security.setIgnoreCertificateErrors", json!({"ignore": true})).await;
        }
        browser
    }

    /// Opens a tab with its own cookies and storage.
    pub async fn page(&mut self) -> Page<'_> {
        let context = self.call(None, "Target.createBrowserContext", json!({})).await["browserContextId"].clone();
        let target =
            self.call(None, "Target.createTarget", json!({"url": "about:blank", "browserContextId": context})).await;
        let target = text(&target["targetId"]);
        let session = self.call(None, "Target.attachToTarget", json!({"targetId": target, "flatten": true})).await;
        let is_strict = self.is_strict;
        let mut page = Page { session: text(&session["sessionId"]), target, browser: self };
        page.call("Page.enable", json!({})).await;
        if !is_strict {
            page.call("Security.setIgnoreCertificateErrors", json!({"ignore": true})).await;
        }
        page
    }

    async fn call(&mut self, session: Option<&str>, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let id = self.last_id;
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = session {
            message["sessionId"] = json!(session);
        }
        self.socket.send(Message::text(message.to_string())).await.expect("it runs");
        loop {
            let answer = self.next().await;
            if answer["id"] == id {
                // A navigation discards the result of the evaluation.
                if method == "Runtime.evaluate" && answer["error"]["message"] == "Inspected target navigated or closed"
                {
                    return json!({});
                }
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].clone();
            }
            self.events.push(answer);
        }
    }

    async fn next(&mut self) -> Value {
        let message = timeout(PATIENCE, self.socket.next()).await.expect("a word in time").expect("it runs");
        serde_json::from_str(message.expect("it runs").to_text().expect("text")).expect("JSON")
    }
}

impl Page<'_> {
    /// Goes to an address, and waits until the page has loaded.
    pub async fn goto(&mut self, address: &str) {
        self.try_goto(address).await.unwrap_or_else(|error| panic!("{address}: {error}"));
    }

    /// Goes to an address, and returns the network error, if there is one.
    pub async fn try_goto(&mut self, address: &str) -> Result<(), String> {
        self.browser.events.clear();
        let answer = self.call("Page.navigate", json!({"url": address})).await;
        match answer["errorText"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => {
                self.loaded().await;
                Ok(())
            }
        }
    }

    /// Reloads the page, and waits until the new one has loaded, because until then the old one answers.
    pub async fn reload(&mut self) {
        self.browser.events.clear();
        self.call("Page.reload", json!({})).await;
        self.loaded().await;
    }

    /// Waits until a new page has loaded.
    pub async fn loaded(&mut self) {
        let is_load =
            |event: &Value, session: &str| event["method"] == "Page.loadEventFired" && event["sessionId"] == session;
        if let Some(at) = self.browser.events.iter().position(|event| is_load(event, &self.session)) {
            self.browser.events.remove(at);
            return;
        }
        loop {
            let event = self.browser.next().await;
            if is_load(&event, &self.session) {
                return;
            }
        }
    }

    /// Returns the value of an expression, or of its promise; an exception as `exception: ...`.
    pub async fn eval(&mut self, expression: &str) -> Value {
        let params =
            json!({"expression": expression, "awaitPromise": true, "returnByValue": true, "userGesture": true});
        let answer = self.call("Runtime.evaluate", params).await;
        match answer["exceptionDetails"].is_null() {
            true => answer["result"]["value"].clone(),
            false => json!(format!("exception: {}", answer["exceptionDetails"]["exception"]["description"])),
        }
    }

    /// Returns the visible text of the page.
    pub async fn text(&mut self) -> String {
        text(&self.eval("document.body.innerText").await)
    }

    /// Waits until an expression is true, across navigations.
    pub async fn until(&mut self, expression: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.eval(expression).await != json!(true) {
            assert!(Instant::now() < deadline, "not in time: {expression}; the page says {:?}", self.text().await);
            sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn call(&mut self, method: &str, params: Value) -> Value {
        let session = self.session.clone();
        self.browser.call(Some(&session), method, params).await
    }

    pub async fn close(self) {
        self.browser.call(None, "Target.closeTarget", json!({"targetId": self.target})).await;
        self.browser.events.clear();
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
