//! The dashboard in a real Chromium: by keyboard only, with names that contain markup, and beside hostile pages.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use super::{
    chromium::{Chromium, Page},
    site_of_somebody_else,
};
use crate::{dashboard::send, process::Process};

/// A name that contains an element with a script.
const HOSTILE: &str = "<img src=x onerror=document.title='owned'>";

/// Script that collects violations of the content policy from the start.
const WATCH: &str = "window.refused = []; addEventListener('securitypolicyviolation', event => refused.push(event.violatedDirective + ' ' + event.blockedURI));";

/// The views, each with the name of its pictures.
pub const VIEWS: [(&str, &str); 5] = [
    ("now", "/"),
    ("services", "/services"),
    ("tunnel", "/tunnel/demo%2Fshop%2Fweb"),
    ("requests", "/requests"),
    ("log", "/log"),
];

/// Opens a signed-in tab.
pub async fn signed_in<'b>(browser: &'b mut Chromium, process: &Process) -> Page<'b> {
    let (_, link, _) = process.command(&["ui", "--print"]).await;
    let mut page = browser.page().await;
    page.call("Page.addScriptToEvaluateOnNewDocument", json!({"source": WATCH})).await;
    page.goto(link.trim()).await;
    page.until("document.querySelector('.tiles') !== null").await;
    page
}

/// Presses keys one after the other.
pub async fn press(page: &mut Page<'_>, keys: &[&str]) {
    for key in keys {
        let text = match *key {
            "Enter" => "\r",
            key if key.chars().count() == 1 => key,
            _ => "",
        };
        let code = match *key {
            "Enter" => 13,
            "Escape" => 27,
            "Tab" => 9,
            _ => 0,
        };
        let down = json!({"type": "keyDown", "key": key, "text": text, "windowsVirtualKeyCode": code});
        page.call("Input.dispatchKeyEvent", down).await;
        page.call("Input.dispatchKeyEvent", json!({"type": "keyUp", "key": key, "windowsVirtualKeyCode": code})).await;
    }
}

#[tokio::test]
async fn every_view_is_used_by_keyboard_alone() {
    let process = Process::start("", &[]).await;
    assert!(process.serves("web.shop.localhost").await && !process.serves("nothing.shop.localhost").await);
    let mut browser = Chromium::start("MAP evil.example 127.0.0.1").await;
    let mut page = signed_in(&mut browser, &process).await;
    page.until(
        "document.title === 'Now · adit' && document.body.innerText.includes('demo/shop/nothing cannot be reached')",
    )
    .await;
    press(&mut page, &["g", "s"]).await;
    page.until("location.pathname === '/services' && document.title.startsWith('Services') && document.querySelectorAll('tbody tr').length > 3").await;
    press(&mut page, &["/"]).await;
    page.until("document.activeElement.type === 'search'").await;
    press(&mut page, &["s", "h", "o", "p", "/", "w", "e", "b", "Escape"]).await;
    page.until("document.querySelectorAll('tbody tr').length === 1 && location.search === '?q=shop%2Fweb'").await;
    assert_eq!(
        page.eval("document.querySelector('input').value + document.activeElement.tagName").await,
        "shop/webBODY"
    );
    // A reload keeps the filter.
    page.reload().await;
    page.until(
        "document.querySelectorAll('tbody tr').length === 1 && document.querySelector('input').value === 'shop/web'",
    )
    .await;
    // Tunnels come with the first event, after the Services.
    page.until("document.querySelector('tbody tr').innerText.includes('● running')").await;
    press(&mut page, &["j"]).await;
    page.until("document.activeElement.matches('tr[aria-current]')").await;
    press(&mut page, &["Enter"]).await;
    page.until("location.pathname === '/tunnel/demo%2Fshop%2Fweb' && document.title === 'Tunnel demo/shop/web · adit'")
        .await;
    page.until("document.querySelector('svg.bars') !== null && document.body.innerText.includes('--context demo -n shop port-forward svc/web')").await;
    press(&mut page, &["r"]).await;
    page.until("document.querySelector('#state').textContent === 'Another session opens'").await;
    press(&mut page, &["s"]).await;
    page.until("document.querySelector('dialog[open]') !== null").await;
    press(&mut page, &["Escape"]).await;
    page.until("document.querySelector('dialog') === null").await;
    press(&mut page, &["s"]).await;
    page.until("document.activeElement.textContent === 'Stop the tunnel' || (document.querySelector('dialog button').focus(), false)").await;
    press(&mut page, &["Enter"]).await;
    page.until("document.body.innerText.includes('○ closed')").await;
    press(&mut page, &["g", "r"]).await;
    page.until("location.pathname === '/requests' && document.querySelectorAll('tbody tr').length >= 2").await;
    press(&mut page, &["e"]).await;
    page.until("document.querySelector('input').value === 'is:error'").await;
    press(&mut page, &["e"]).await;
    page.until("document.querySelector('input').value === '' && document.querySelectorAll('tbody tr').length >= 2")
        .await;
    press(&mut page, &["j", "j", "Enter"]).await;
    page.until("!document.querySelector('aside').hidden && document.querySelector('svg.fall') !== null").await;
    press(&mut page, &["Escape"]).await;
    page.until("document.querySelector('aside').hidden").await;
    press(&mut page, &["Enter"]).await;
    page.until(
        "document.activeElement.textContent === 'Close' || (document.querySelector('aside button')?.focus(), false)",
    )
    .await;
    press(&mut page, &["Enter"]).await;
    page.until("document.querySelector('aside').hidden && document.activeElement.matches('tr[aria-current]')").await;
    press(&mut page, &["g", "l"]).await;
    page.until("location.pathname === '/log' && document.title === 'Log · adit'").await;
    press(&mut page, &["?"]).await;
    page.until("document.querySelector('dialog[open]').innerText.includes('Enable keyboard shortcuts')").await;
    press(&mut page, &["Escape"]).await;
    page.until("document.querySelector('dialog') === null").await;
    press(&mut page, &["g", "n"]).await;
    page.until("location.pathname === '/'").await;
    page.eval("history.back()").await;
    page.until("location.pathname === '/log' && document.querySelector('h1').textContent === 'Log'").await;
    assert_eq!(page.eval("refused").await, json!([]));
    assert_eq!(page.eval("Object.keys(document.cookie).length").await, json!(0), "no script reads the cookie");
}

#[tokio::test]
async fn keys_copy_and_open_what_the_row_is_about() {
    let process = Process::start("", &[]).await;
    let host = format!("web.shop.localhost:{}", process.http.port());
    send(&process, "GET /whoami?a=1", &host, &[], "").await;
    let mut browser = Chromium::start("MAP evil.example 127.0.0.1").await;
    let mut page = signed_in(&mut browser, &process).await;
    let (url, asked) = (format!("http://{host}/"), format!("http://{host}/whoami?a=1"));
    let curl = format!("curl '{asked}'");
    for (path, url, command) in [("/", url, "port-forward svc/web"), ("/requests", asked, &*curl)] {
        page.goto(&format!("http://adit.localhost:{}{path}", process.http.port())).await;
        page.until("document.querySelectorAll('tbody tr[tabindex]').length > 0").await;
        page.eval("window.got = []; navigator.clipboard.writeText = async text => { got.push(text); }; window.open = url => { got.push('open ' + url); }")
            .await;
        press(&mut page, &["j", "c"]).await;
        page.until(&format!("got.at(-1) === {}", json!(url))).await;
        press(&mut page, &["y"]).await;
        page.until(&format!("got.at(-1).includes({})", json!(command))).await;
        press(&mut page, &["o"]).await;
        page.until(&format!("got.at(-1) === {}", json!(format!("open {url}")))).await;
    }
}

#[tokio::test]
async fn the_log_says_what_the_last_reload_changed() {
    let config = |http: u8, tcp: u8| format!("http: {{idle_timeout: {http}m}}\ntcp: {{idle_timeout: {tcp}m}}\n");
    let process = Process::start(&config(9, 9), &[]).await;
    let mut browser = Chromium::start("MAP evil.example 127.0.0.1").await;
    let mut page = signed_in(&mut browser, &process).await;
    for (http, tcp) in [(8, 9), (8, 8)] {
        let from = process.log().len();
        fs::write(process.config(), config(http, tcp)).unwrap();
        process.logs_after(from, "config reloaded").await;
        page.goto(&format!("http://adit.localhost:{}/log", process.http.port())).await;
        page.until("document.body.innerText.includes('The last reload changed')").await;
    }
    let text = page.text().await;
    let line = text.lines().find(|line| line.contains("The last reload changed")).unwrap();
    assert!(line.contains("tcp.") && !line.contains("http."), "{line}");
}

#[tokio::test]
async fn names_that_are_markup_stay_text() {
    let process = Process::start("", &[]).await;
    let service = json!({
        "metadata": {"namespace": "shop", "name": HOSTILE},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "name": "<b>http</b>"}]}
    });
    process.demo.world().put("services", service);
    let path = HOSTILE.replace(' ', "%20");
    send(
        &process,
        &format!("GET /{path}"),
        "web.shop.localhost",
        &["X-Note: <script>document.title='owned'</script>"],
        "",
    )
    .await;
    send(&process, "GET /%3Cscript%3Ealert(1)%3C/script%3E", "web.shop.localhost", &[], "").await;
    let mut browser = Chromium::start("MAP evil.example 127.0.0.1").await;
    let mut page = signed_in(&mut browser, &process).await;
    // A Service with a name that no API server would accept is not listed.
    for (view, text) in [("/services", "shop/web"), ("/requests", "alert(1)"), ("/log", ""), ("/", "")] {
        let address = format!("http://adit.localhost:{}{view}", process.http.port());
        page.goto(&address).await;
        page.until(&format!("document.body.innerText.includes({})", json!(text))).await;
        assert_eq!(
            page.eval("document.querySelectorAll('main img, main script, main b').length").await,
            json!(0),
            "{view}"
        );
        assert_ne!(page.eval("document.title").await, json!("owned"), "{view}");
        assert!(view != "/services" || !page.text().await.contains(HOSTILE));
        assert_eq!(page.eval("refused").await, json!([]), "{view}");
    }
}

#[tokio::test]
async fn pages_of_others_get_nothing_and_change_nothing() {
    let process = Process::start("", &[]).await;
    assert!(process.serves("web.shop.localhost").await);
    let evil = site_of_somebody_else().await;
    let mut browser = Chromium::start("MAP evil.example 127.0.0.1, MAP rebound.example 127.0.0.1").await;
    let mut page = signed_in(&mut browser, &process).await;
    let port = process.http.port();
    let own = format!("http://adit.localhost:{port}");
    for from in [
        format!("http://evil.example:{}/", evil.port()),
        format!("http://evil.localhost:{}/", evil.port()),
        format!("http://localhost:{}/", evil.port()),
        format!("http://web.shop.localhost:{port}/"),
        format!("http://rebound.example:{port}/"),
    ] {
        page.goto(&from).await;
        let read = format!(
            "fetch('{own}/api/v1/tunnels', {{credentials: 'include'}}).then(answer => answer.text(), () => 'refused')"
        );
        assert_eq!(page.eval(&read).await, json!("refused"), "{from}");
        let blind = format!(
            "fetch('{own}/api/v1/tunnels/demo%2Fshop%2Fweb/stop', {{method: 'POST', mode: 'no-cors', credentials: 'include', body: '{{}}'}}).then(() => 'sent', () => 'refused')"
        );
        page.eval(&blind).await;
        let script = format!(
            "new Promise(done => {{ const tag = document.createElement('script'); tag.src = '{own}/api/v1/status'; tag.onload = () => done('loaded'); tag.onerror = () => done('refused'); document.head.append(tag); }})"
        );
        assert_eq!(page.eval(&script).await, json!("refused"), "{from}");
        let socket = format!(
            "new Promise(done => {{ const socket = new WebSocket('{}/api/v1/events'); socket.onopen = () => done('open'); socket.onerror = () => done('refused'); }})",
            own.replace("http:", "ws:")
        );
        assert_eq!(page.eval(&socket).await, json!("refused"), "{from}");
        let frame = format!(
            "new Promise(done => {{ const frame = document.createElement('iframe'); frame.src = '{own}/'; frame.onload = () => setTimeout(() => done(frame.contentWindow.length), 200); document.body.append(frame); setTimeout(() => done('nothing'), 3000); }})"
        );
        let framed = page.eval(&frame).await;
        assert!(framed == json!(0) || framed == json!("nothing"), "{from}: {framed}");
        let form = format!(
            "(() => {{ const form = document.createElement('form'); form.method = 'post'; form.enctype = 'text/plain'; form.target = '_self'; form.action = '{own}/api/v1/tunnels/demo%2Fshop%2Fweb/stop'; document.body.append(form); form.submit(); }})()"
        );
        // adit's own pages may not send forms at all.
        if !from.contains("rebound") {
            page.eval(&form).await;
            let is_refused = "document.body.innerText.includes('other-page')";
            page.until(&format!("location.href.startsWith('{own}') && {is_refused}")).await;
        }
        // A page with a rebound name cannot read anything either.
        page.goto(&from).await;
        let text = page.eval("fetch('/api/v1/tunnels').then(answer => answer.text(), () => '')").await;
        assert!(!text.to_string().contains("demo/shop/web"), "{from}: {text}");
    }
    assert!(process.status().await.contains("demo/shop/web"), "nothing was stopped");
    // After a link on another site, the user is still signed in.
    page.goto(&format!("http://web.shop.localhost:{port}/")).await;
    page.eval(&format!("location.href = '{own}/services'")).await;
    page.until("document.title === 'Services · adit'").await;
}

#[tokio::test]
async fn two_adits_keep_both_sign_ins_and_a_lost_one_is_said() {
    let (first, mut second) = (Process::start("", &[]).await, Process::start("", &[]).await);
    let mut browser = Chromium::start("MAP evil.example 127.0.0.1").await;
    let (_, link, _) = second.command(&["ui", "--print"]).await;
    let mut page = signed_in(&mut browser, &first).await;
    page.goto(link.trim()).await;
    for process in [&first, &second] {
        page.goto(&format!("http://adit.localhost:{}/", process.http.port())).await;
        page.until("document.querySelector('.tiles') !== null").await;
    }
    second.signal("TERM").await;
    second.exit_code().await;
    page.until("!document.querySelector('#notice').hidden && document.body.classList.contains('stale')").await;
}

/// Returns the script of axe-core, if it was downloaded.
fn axe() -> Option<String> {
    Some(fs::read_to_string(PathBuf::from(std::env::var_os("ADIT_AXE")?)).expect("axe-core"))
}

/// Returns the violations that axe-core finds.
async fn judged(page: &mut Page<'_>, axe: &str) -> Value {
    page.eval(axe).await;
    page.eval("axe.run().then(found => found.violations.map(each => `${each.id}: ${each.nodes[0].html}`))").await
}

#[tokio::test]
async fn axe_finds_nothing() {
    // `just browser` reports if axe-core is missing.
    let Some(axe) = axe() else { return };
    let process = Process::start("", &[]).await;
    assert!(process.serves("web.shop.localhost").await && !process.serves("nothing.shop.localhost").await);
    let mut browser = Chromium::start("MAP evil.example 127.0.0.1").await;
    let mut page = signed_in(&mut browser, &process).await;
    for scheme in ["light", "dark"] {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        page.call("Emulation.setEmulatedMedia", features).await;
        for width in [1440, 800, 320] {
            let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
            page.call("Emulation.setDeviceMetricsOverride", size).await;
            for (name, path) in VIEWS {
                page.goto(&format!("http://adit.localhost:{}{path}", process.http.port())).await;
                page.until("document.querySelector('tbody tr') !== null").await;
                if name == "requests" {
                    press(&mut page, &["j", "Enter"]).await;
                    page.until("!document.querySelector('aside').hidden").await;
                }
                assert_eq!(judged(&mut page, &axe).await, json!([]), "{name} at {width}, {scheme}");
                let overflow = page.eval("document.documentElement.scrollWidth <= innerWidth").await;
                assert_eq!(overflow, json!(true), "{name} at {width} scrolls to the side");
            }
        }
    }
}

#[tokio::test]
async fn a_long_table_has_elements_only_for_what_is_near_the_rows_that_are_seen() {
    let process = Process::start("", &[]).await;
    assert!(process.serves("web.shop.localhost").await);
    many(&process);
    let mut browser = Chromium::start("MAP evil.example 127.0.0.1").await;
    let mut page = signed_in(&mut browser, &process).await;
    // Observe from the first byte, before the page's script runs.
    let watch = "window.most = 0; new MutationObserver(() => { most = Math.max(most, document.querySelectorAll('tr').length); }).observe(document, {childList: true, subtree: true});";
    page.call("Page.addScriptToEvaluateOnNewDocument", json!({"source": watch})).await;
    page.goto(&format!("http://adit.localhost:{}/services", process.http.port())).await;
    let row_count = "Number(document.querySelector('table').getAttribute('aria-rowcount'))";
    page.until(&format!("{row_count} > 2000")).await;
    let rows = "document.querySelectorAll('tbody tr[tabindex]').length";
    assert!(page.eval(rows).await.as_u64() < Some(100), "{}", page.eval(rows).await);
    assert!(page.eval("most").await.as_u64() < Some(110), "{}", page.eval("most").await);
    // The page is as long as if all rows were in it.
    let height = "document.querySelector('tbody').offsetHeight";
    assert!(page.eval(height).await.as_u64() > Some(2000 * 20), "{}", page.eval(height).await);

    press(&mut page, &["j", "j"]).await;
    page.until("document.activeElement.getAttribute('aria-rowindex') === '3'").await;
    page.eval("window.focused = document.activeElement; scrollTo(0, document.documentElement.scrollHeight)").await;
    page.until(&format!("document.querySelector(`tbody tr[aria-rowindex=\"${{{row_count}}}\"]`) !== null")).await;
    let is_seen = "(() => { const box = document.querySelector('tbody tr:last-of-type').getBoundingClientRect(); return box.bottom > 0 && box.top < innerHeight; })()";
    page.until(is_seen).await;
    assert!(page.eval(rows).await.as_u64() < Some(100), "{}", page.eval(rows).await);

    // Events change only cells: the focus stays on a row that is far away, and the scroll position stays.
    page.eval("window.changes = 0; new MutationObserver(list => { changes += list.length; }).observe(document.querySelector('tbody'), {childList: true, subtree: true, characterData: true}); window.at = scrollY").await;
    for _ in 0..20 {
        assert!(process.serves("web.shop.localhost").await);
    }
    let is_counted = "[...document.querySelectorAll('tbody tr[tabindex]')].some(row => row.innerText.includes('shop/web') && row.innerText.includes('\\t21\\t'))";
    page.until(is_counted).await;
    assert!(page.eval("changes").await.as_u64() < Some(200), "{}", page.eval("changes").await);
    page.until("document.activeElement === focused && focused.matches('tr[aria-current]') && scrollY === at").await;
    // The next row scrolls into view.
    press(&mut page, &["j"]).await;
    page.until(
        "document.activeElement.getAttribute('aria-rowindex') === '4' && document.activeElement.getBoundingClientRect().top > 0 \
         && document.activeElement.getBoundingClientRect().bottom < innerHeight",
    )
    .await;
    assert!(page.eval(rows).await.as_u64() < Some(100), "{}", page.eval(rows).await);
    if let Some(axe) = axe() {
        assert_eq!(judged(&mut page, &axe).await, json!([]));
    }
    assert_eq!(page.eval("refused").await, json!([]));
}

/// Adds two thousand ports of Services to the demo's cluster; each is a row.
fn many(process: &Process) {
    let world = process.demo.world();
    for at in 0..100 {
        let port =
            |at: u16| json!({"name": format!("http-{at}"), "port": 8000 + at, "protocol": "TCP", "targetPort": 8080});
        let ports: Vec<Value> = (0..20).map(port).collect();
        let spec = json!({"selector": {"app": "many"}, "clusterIP": format!("10.97.0.{}", at + 1), "ports": ports});
        world.put("services", json!({"metadata": {"namespace": "shop", "name": format!("many-{at}")}, "spec": spec}));
    }
}
