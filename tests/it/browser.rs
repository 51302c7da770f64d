//! What users see: a real Chromium with adit, in front of a demo cluster. `just browser` runs it.
//!
//! A test is a theme, and each of its lines a case. The site of an attacker is `evil.example`.

mod chromium;
mod dashboard;
mod firefox;
mod live;
mod pictures;
mod proxy;
mod trust;

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use self::chromium::{Chromium, Page};
use crate::support::TestApp;

const CONFIG: &str = "
http:
  k8s:
    routes:
      shop.localhost: {namespace: shop, service: web, port: http}
      open.localhost: {namespace: shop, service: web, port: http, allow_origins: ['*']}
      moved.localhost:
        namespace: shop
        service: web
        port: http
        headers: {response: {set: {set-cookie: 'visit=1; Path=/'}}}
";

/// adit, a browser, and the site of an attacker.
struct Suite {
    app: TestApp,
    browser: Chromium,
    evil: SocketAddr,
}

impl Suite {
    async fn start() -> Self {
        let app = TestApp::start(CONFIG).await;
        let evil = site_of_somebody_else().await;
        let browser = Chromium::start("MAP evil.example 127.0.0.1").await;
        Self { app, browser, evil }
    }

    fn at(&self, scheme: &str, host: &str, path: &str) -> String {
        format!("{scheme}://{host}:{}{path}", self.app.http.port())
    }

    fn url(&self, host: &str, path: &str) -> String {
        self.at("http", host, path)
    }

    /// Opens a tab with a page that adit serves.
    async fn page(&mut self, host: &str, path: &str) -> Page<'_> {
        let address = self.url(host, path);
        self.open(&address).await
    }

    /// Opens a tab with a page of the attacker.
    async fn foreign_page(&mut self) -> Page<'_> {
        let address = format!("http://evil.example:{}/", self.evil.port());
        self.open(&address).await
    }

    async fn open(&mut self, address: &str) -> Page<'_> {
        let mut page = self.browser.page().await;
        page.goto(address).await;
        page
    }

    /// Returns the number of requests with `text` in their lines of the pods' logs.
    fn seen(&self, text: &str) -> usize {
        let pods = self.app.demo.world().list("pods", None).0;
        let processes = pods.iter().filter_map(|pod| self.app.demo.world().process(pod["metadata"]["uid"].as_str()?));
        processes.map(|process| process.lines(0).0.lines().filter(|line| line.contains(text)).count()).sum()
    }
}

async fn site_of_somebody_else() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let page = "<!doctype html><title>evil</title><body>evil";
                let length = page.len();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                );
                let _ = stream.write_all(format!("{head}{page}").as_bytes()).await;
            });
        }
    });
    address
}

/// Asserts the value of each expression.
async fn come_to(page: &mut Page<'_>, cases: &[(&str, String, Value)]) {
    for (case, expression, expected) in cases {
        let found = page.eval(expression).await;
        assert_eq!(&found, expected, "{case}: {expression}");
    }
}

#[tokio::test]
async fn pages_open_by_every_name() {
    let mut suite = Suite::start().await;
    let protocol = "performance.getEntriesByType('navigation')[0].nextHopProtocol";
    for (scheme, host, title, hop) in [
        ("http", "web.shop.localhost", "web-6d5f-", "http/1.1"),
        ("http", "WEB.Shop.localhost", "web-6d5f-", "http/1.1"),
        ("http", "shop.localhost", "web-6d5f-", "http/1.1"),
        ("http", "80.tools.shop.localhost", "tools-0", "http/1.1"),
        ("http", "81.tools.shop.localhost", "tools-0", "http/1.1"),
        ("http", "443.tools.shop.localhost", "tools-0", "http/1.1"),
        ("http", "web-6d5f-b2-8080.pod.shop.ns.demo.cx.k8s.localhost", "web-6d5f-b2", "http/1.1"),
        ("https", "web.shop.localhost", "web-6d5f-", "h2"),
        ("https", "81.tools.shop.localhost", "tools-0", "h2"),
        // The backend's own certificate and protocol.
        ("https", "443.tools.shop.localhost", "tools-0", "http/1.1"),
    ] {
        let address = suite.at(scheme, host, "/");
        let mut page = suite.open(&address).await;
        let found = page.eval("document.title").await;
        assert!(found.as_str().is_some_and(|found| found.starts_with(title)), "{address}: {found}");
        assert_eq!(page.eval(protocol).await, json!(hop), "{address}");
        page.close().await;
    }
    let port = suite.app.http.port();
    let mut page = suite.page("127.0.0.1", "/").await;
    assert!(page.text().await.starts_with("adit is running"));
    let link = page.eval("document.querySelector('a').href").await;
    assert_eq!(link, json!(format!("http://adit.localhost:{port}/")));
    page.close().await;
    let mut page = suite.page("localhost", "/").await;
    let text = page.text().await;
    assert!(text.contains("adit ui") && !text.contains("shop"), "{text}");
}

#[tokio::test]
async fn errors_are_pages_that_say_what_to_do() {
    let mut suite = Suite::start().await;
    for (scheme, host, words) in [
        ("http", "shpo.localhost", "did you mean shop.localhost"),
        ("http", "wbe.shop.localhost", "did you mean web?"),
        ("http", "web.shop.demo-nobody.cx.localhost", "user nobody may not get services in namespace shop"),
        ("http", "queue.shop.localhost", "5672"),
        ("https", "shpo.localhost", "did you mean shop.localhost"),
        ("https", "payments.shop.localhost", "ExternalName for api.example.com"),
    ] {
        let address = suite.at(scheme, host, "/");
        let mut page = suite.open(&address).await;
        let text = page.text().await;
        assert!(text.contains(words), "{address}: {text}");
        page.close().await;
    }

    let mut page =
        suite.page("shpo.localhost", "/<script>window.echoed=1</script>?<img src=x onerror=window.echoed=1>").await;
    let widths = "document.documentElement.scrollWidth <= window.innerWidth";
    let background = "getComputedStyle(document.documentElement).colorScheme + ' ' + matchMedia('(prefers-color-scheme: dark)').matches";
    come_to(
        &mut page,
        &[
            ("nothing of the address is run", "window.echoed === undefined".into(), json!(true)),
            ("nothing of the address is in the page", "document.body.innerHTML.includes('echoed')".into(), json!(false)),
            ("it fetches nothing", "performance.getEntriesByType('resource').length".into(), json!(0)),
            ("its policy lets no script in", "(() => { const s = document.createElement('script'); s.textContent = 'window.echoed=1'; document.body.append(s); return window.echoed === undefined })()".into(), json!(true)),
        ],
    )
    .await;
    let phone = json!({"width": 320, "height": 640, "deviceScaleFactor": 2, "mobile": true});
    page.call("Emulation.setDeviceMetricsOverride", phone).await;
    assert_eq!(page.eval(widths).await, json!(true), "it fits a phone");
    let dark = json!({"features": [{"name": "prefers-color-scheme", "value": "dark"}]});
    page.call("Emulation.setEmulatedMedia", dark).await;
    assert_eq!(page.eval(background).await, json!("light dark true"), "it is dark where the user wants it");
    page.eval("document.querySelector('a').click()").await;
    page.until("document.title.startsWith('web-6d5f-')").await;
    page.close().await;
}

#[tokio::test]
async fn a_page_about_a_pod_that_is_not_ready_becomes_the_application() {
    let mut suite = Suite::start().await;
    let address = suite.url("broken.shop.localhost", "/");
    let world = suite.app.demo.world();
    let mut service = (*world.get("services", "shop", "broken").expect("it is there")).clone();
    let mut page = suite.browser.page().await;
    page.goto(&address).await;
    let text = page.text().await;
    assert!(text.contains("CrashLoopBackOff") && text.contains("adit looks again by itself"), "{text}");
    let first = page.eval("performance.timeOrigin").await;
    page.until(&format!("performance.timeOrigin !== {first}")).await;
    service["spec"]["selector"] = json!({"app": "web"});
    world.put("services", service);
    page.until("document.title.startsWith('web-6d5f-')").await;
    page.close().await;
}

#[tokio::test]
async fn what_pages_do_works_over_every_front() {
    let mut suite = Suite::start().await;
    for scheme in ["http", "https"] {
        let (address, sockets) = (suite.at(scheme, "web.shop.localhost", "/"), scheme.replace("http", "ws"));
        let sockets = suite.at(&sockets, "web.shop.localhost", "/ws");
        let mut page = suite.open(&address).await;
        let socket = |then: &str| {
            format!(
                "new Promise(done => {{ const s = new WebSocket('{sockets}'); s.onerror = () => done('refused'); {then} }})"
            )
        };
        let cases = [
            ("fetch", "fetch('/whoami').then(r => r.text()).then(t => t.startsWith('web-6d5f-'))".into(), json!(true)),
            ("the scheme is told", format!("fetch('/headers').then(r => r.text()).then(t => t.includes('\"{scheme}\"'))"), json!(true)),
            ("HEAD", "fetch('/whoami', {method: 'HEAD'}).then(r => r.text()).then(t => t.length)".into(), json!(0)),
            ("204", "fetch('/status/204').then(r => r.status)".into(), json!(204)),
            ("a status of the pod's", "fetch('/status/418').then(r => r.status)".into(), json!(418)),
            (
                "an upload arrives whole",
                "(async () => { const b = new Uint8Array(8 << 20).fill(7); const d = await crypto.subtle.digest('SHA-256', b); \
                 const hex = [...new Uint8Array(d)].map(x => x.toString(16).padStart(2, '0')).join(''); \
                 const r = await (await fetch('/upload', {method: 'POST', body: b})).json(); return r.bytes === b.length && r.sha256 === hex })()".into(),
                json!(true),
            ),
            ("a download arrives whole", "fetch('/download?bytes=33554432').then(r => r.arrayBuffer()).then(b => b.byteLength)".into(), json!(33_554_432)),
            (
                "a download that is given up",
                "(async () => { const c = new AbortController(); const r = await fetch('/download?bytes=1099511627776', {signal: c.signal}); \
                 await r.body.getReader().read(); c.abort(); return (await fetch('/whoami')).status })()".into(),
                json!(200),
            ),
            ("twenty at once", "Promise.all([...Array(20).keys()].map(n => fetch('/whoami?' + n).then(r => r.ok))).then(all => all.every(ok => ok))".into(), json!(true)),
            ("server-sent events come one by one", "new Promise(done => { const s = new EventSource('/sse'); s.onmessage = e => { if (e.data === '2') { s.close(); done('2') } } })".into(), json!("2")),
            ("a stream is read while it is written", "fetch('/sse').then(async r => { const { value } = await r.body.getReader().read(); return new TextDecoder().decode(value) })".into(), json!("data: 0\n\n")),
            ("a WebSocket", socket("s.onopen = () => s.send('hello'); s.onmessage = e => done(e.data)"), json!("hello")),
            ("a large message", socket("s.onopen = () => s.send('x'.repeat(1 << 20)); s.onmessage = e => done(e.data.length)"), json!(1 << 20)),
            ("a close is clean", socket("s.onopen = () => s.close(1000); s.onclose = e => done(e.wasClean)"), json!(true)),
        ];
        come_to(&mut page, &cases).await;
        page.close().await;
    }
}

#[tokio::test]
async fn cookies_stay_with_the_name_they_are_for() {
    let mut suite = Suite::start().await;
    let (web, other) = (suite.url("moved.localhost", "/headers"), suite.url("shop.localhost", "/headers"));
    let mut page = suite.browser.page().await;
    page.goto(&web).await;
    page.goto(&web).await;
    assert!(page.text().await.contains("visit=1"), "the pod's cookie comes back");
    page.goto(&other).await;
    assert!(!page.text().await.contains("visit=1"), "another name does not get it");
    page.close().await;
}

#[tokio::test]
async fn pages_of_others_can_read_nothing_and_change_nothing() {
    let mut suite = Suite::start().await;
    let (shop, open) = (suite.url("web.shop.localhost", ""), suite.url("open.localhost", ""));
    let socket = suite.at("ws", "web.shop.localhost", "/ws?foreign");
    let mut page = suite.foreign_page().await;
    come_to(
        &mut page,
        &[
            ("a fetch is not read", format!("fetch('{shop}/whoami').then(() => 'read', () => 'not read')"), json!("not read")),
            ("a POST is sent blindly", format!("fetch('{shop}/upload?foreign', {{method: 'POST', mode: 'no-cors', body: 'x'}}).then(r => r.type)"), json!("opaque")),
            ("a PUT does not pass its preflight", format!("fetch('{shop}/upload?foreign', {{method: 'PUT', body: 'x'}}).then(() => 'sent', () => 'not sent')"), json!("not sent")),
            ("a beacon", format!("navigator.sendBeacon('{shop}/upload?foreign', 'x')"), json!(true)),
            ("a WebSocket", format!("new Promise(done => {{ const s = new WebSocket('{socket}'); s.onopen = () => done('open'); s.onerror = () => done('refused') }})"), json!("refused")),
            (
                "a frame without an origin",
                format!("new Promise(done => {{ const f = document.createElement('iframe'); f.sandbox = 'allow-scripts'; onmessage = e => done(e.data); \
                 f.srcdoc = `<script>fetch('{shop}/upload?foreign', {{method: 'POST', mode: 'no-cors', body: 'x'}}).then(r => parent.postMessage(r.type, '*'))</script>`; document.body.append(f) }})"),
                json!("opaque"),
            ),
            ("an image is loaded, as it changes nothing", format!("fetch('{shop}/whoami?image', {{mode: 'no-cors'}}).then(r => r.type)"), json!("opaque")),
        ],
    )
    .await;
    let form = |to: &str| {
        format!(
            "(() => {{ const f = document.createElement('form'); f.method = 'POST'; f.action = '{to}'; document.body.append(f); f.submit() }})()"
        )
    };
    page.eval(&form(&format!("{shop}/upload?foreign"))).await;
    page.until("document.body.innerText.includes('cross-origin request from http://evil.example')").await;
    assert!(page.text().await.contains("allow_origins"), "it says what to do");
    page.close().await;
    for line in ["POST /upload?foreign", "PUT /upload?foreign", "GET /ws?foreign"] {
        assert_eq!(suite.seen(line), 0, "no pod has seen a {line}");
    }
    assert_eq!(suite.seen("whoami?image"), 1);

    let mut page = suite.foreign_page().await;
    page.eval(&form(&format!("{open}/upload?allowed"))).await;
    page.until("document.body.innerText.includes('sha256')").await;
    page.close().await;
    assert_eq!(suite.seen("upload?allowed"), 1, "the route lets it in");

    // A page of one Service may write to itself, but not to another Service.
    let (home, own) = (suite.url("shop.localhost", "/"), suite.url("shop.localhost", "/upload?own"));
    let mut page = suite.page("shop.localhost", "/").await;
    page.eval(&form(&format!("{shop}/upload?neighbour"))).await;
    page.until("document.body.innerText.includes('cross-origin request from http://shop.localhost')").await;
    page.goto(&home).await;
    page.eval(&form(&own)).await;
    page.until("document.body.innerText.includes('sha256')").await;
    page.close().await;
    assert_eq!((suite.seen("upload?neighbour"), suite.seen("upload?own")), (0, 1));

    // DNS rebinding: the attacker's name resolves to adit's address.
    let mut page = suite.page("evil.example", "/whoami?rebound").await;
    assert!(page.text().await.contains("no route for evil.example"));
    page.close().await;
    assert_eq!(suite.seen("whoami?rebound"), 0);
}
