//! The dashboard shows what is so: nothing is lost, nothing is old without a word, and rows stay where people look at them.

use serde_json::json;

use super::{
    chromium::{Chromium, Page},
    dashboard::{press, signed_in},
};
use crate::{dashboard::send, process::Process};

/// Hides the tab from its page, or shows it.
async fn hide(page: &mut Page<'_>, is_hidden: bool) {
    page.eval(&format!("Object.defineProperty(document, 'hidden', {{get: () => {is_hidden}, configurable: true}}); document.dispatchEvent(new Event('visibilitychange'))")).await;
}

async fn go(page: &mut Page<'_>, process: &Process, path: &str) {
    page.goto(&format!("http://adit.localhost:{}{path}", process.http.port())).await;
}

const COUNT: &str = "document.querySelector('.count').textContent";

#[tokio::test]
async fn rows_and_lines_are_complete_however_many_come_and_after_the_tab_was_hidden() {
    let process = Process::start("", &[]).await;
    let mut browser = Chromium::start("MAP evil.example 127.0.0.1").await;
    let mut page = signed_in(&mut browser, &process).await;
    go(&mut page, &process, "/requests?q=path:/burst").await;
    page.until(&format!("{COUNT} === '0 of 0'")).await;
    process.burst(900, "/burst").await;
    page.until(&format!("{COUNT} === '900 of 901'")).await;

    page.eval("const field = document.querySelector('input'); field.value = 'path:/hidden'; field.dispatchEvent(new Event('input'))").await;
    page.until(&format!("{COUNT} === '0 of 901'")).await;
    hide(&mut page, true).await;
    process.burst(600, "/hidden").await;
    hide(&mut page, false).await;
    page.until(&format!("{COUNT} === '600 of 1,000'")).await;

    go(&mut page, &process, "/log").await;
    page.until("document.querySelector('.count').textContent !== ''").await;
    hide(&mut page, true).await;
    assert!(process.serves("web.shop.localhost").await);
    process.logs("tunnel running").await;
    hide(&mut page, false).await;
    page.until("document.querySelector('tbody').innerText.includes('tunnel running')").await;
}

#[tokio::test]
async fn an_adit_that_hangs_is_said_and_what_it_shows_is_greyed() {
    let process = Process::start("", &[]).await;
    let mut browser = Chromium::start("MAP evil.example 127.0.0.1").await;
    let mut page = signed_in(&mut browser, &process).await;
    process.signal("STOP").await;
    page.until("document.body.classList.contains('stale') && document.querySelector('#notice').textContent.startsWith('adit does not answer. What you see is of ')").await;
    process.signal("CONT").await;
    page.until("document.querySelector('#notice').hidden && !document.body.classList.contains('stale')").await;
}

#[tokio::test]
async fn services_are_read_again_by_themselves_and_never_of_another_context() {
    let process = Process::start("", &[]).await;
    let mut browser = Chromium::start("MAP evil.example 127.0.0.1").await;
    let mut page = signed_in(&mut browser, &process).await;
    go(&mut page, &process, "/services").await;
    page.until("document.querySelector('tbody').innerText.includes('shop/web') && document.querySelectorAll('option').length > 2").await;
    let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80, "name": "http"}]});
    process.demo.world().put("services", json!({"metadata": {"namespace": "shop", "name": "fresh"}, "spec": spec}));
    page.until("document.querySelector('tbody').innerText.includes('shop/fresh')").await;

    // A context that answers late.
    page.eval("window.late = 0; window.real = fetch; window.fetch = (to, options) => !String(to).includes('context=') ? real(to, options) : new Promise(done => setTimeout(done, 1500)).then(() => real(to, {})).then(answer => { setTimeout(() => late++, 200); return answer; })").await;
    let choose = |name: &str| {
        format!(
            "(() => {{ const list = document.querySelector('select'); list.value = '{name}'; list.dispatchEvent(new Event('change')); }})()"
        )
    };
    page.eval(&choose("demo-nobody")).await;
    page.until("document.querySelectorAll('tbody tr[tabindex]').length === 0").await;
    page.eval(&choose("")).await;
    page.until("document.querySelector('tbody').innerText.includes('shop/web')").await;
    page.until("late === 1").await;
    assert_eq!(page.eval("document.querySelector('select').value + document.querySelectorAll('.need').length + document.querySelector('tbody').innerText.includes('shop/web')").await, json!("0true"));
}

#[tokio::test]
async fn rows_stay_where_they_are_while_others_come_and_details_open_beside_them() {
    let process = Process::start("", &[]).await;
    let mut browser = Chromium::start("MAP evil.example 127.0.0.1").await;
    let mut page = signed_in(&mut browser, &process).await;
    process.burst(400, "/a-path-that-is-long-enough-to-take-more-than-one-line/").await;
    for width in [1440, 800, 320] {
        let size = json!({"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false});
        page.call("Emulation.setDeviceMetricsOverride", size).await;
        go(&mut page, &process, "/requests").await;
        page.until("document.querySelector('table').getAttribute('aria-rowcount') > 400").await;
        page.eval("scrollTo(0, 3000)").await;
        let place = "(() => { const row = [...document.querySelectorAll('tbody tr[tabindex]')].find(row => row.rowKey === window.chosen); return row ? Math.round(row.getBoundingClientRect().top) : null; })()";
        let choose = "(() => { const row = [...document.querySelectorAll('tbody tr[tabindex]')].find(row => { const top = row.getBoundingClientRect().top; return top > 100 && top < 200; }); window.chosen = row && row.rowKey; return Boolean(row); })()";
        page.until(choose).await;
        let before = page.eval(place).await.as_i64().unwrap();
        process.burst(20, &format!("/new-{width}-")).await;
        page.until(&format!(
            "document.querySelector('table').getAttribute('aria-rowcount') > 420 && Math.abs({place} - {before}) < 3"
        ))
        .await;
        page.eval("[...document.querySelectorAll('tbody tr[tabindex]')].find(row => row.rowKey === chosen).click()")
            .await;
        page.until("!document.querySelector('aside').hidden").await;
        let is_seen = "(() => { const box = document.querySelector('aside').getBoundingClientRect(); return box.top < innerHeight - 200 && box.bottom > 200; })()";
        assert_eq!(page.eval(is_seen).await, json!(true), "{width}: the detail is on the screen");
        let after = page.eval(place).await.as_i64().unwrap();
        assert!((after - before).abs() < 3, "{width}: the row was at {before}, and is at {after}");
    }
}

#[tokio::test]
async fn an_edited_replay_that_is_refused_keeps_what_was_written() {
    let process = Process::start("", &[]).await;
    send(&process, "GET /headers?x=1", "web.shop.localhost", &[], "").await;
    let mut browser = Chromium::start("MAP evil.example 127.0.0.1").await;
    let mut page = signed_in(&mut browser, &process).await;
    go(&mut page, &process, "/requests").await;
    page.until("document.querySelector('tbody tr') !== null").await;
    press(&mut page, &["j", "Enter"]).await;
    let click = |at: &str, name: &str| {
        format!(
            "(() => {{ const found = [...document.querySelectorAll('{at} button')].find(each => each.textContent === '{name}'); if (found) found.click(); return Boolean(found); }})()"
        )
    };
    page.until(&click("aside", "Replay edited")).await;
    page.eval("document.querySelectorAll('dialog input')[1].value = 'no path'").await;
    page.eval(&click("dialog", "Send")).await;
    page.until("document.querySelector('dialog [role=alert]').textContent.includes('is not a path')").await;
    assert_eq!(page.eval("document.querySelectorAll('dialog input')[1].value").await, json!("no path"));
    page.eval("document.querySelectorAll('dialog input')[1].value = '/headers?x=2'").await;
    page.eval(&click("dialog", "Send")).await;
    page.until("document.querySelector('dialog') === null && document.querySelector('aside').innerText.includes('A replay of')").await;
}

#[tokio::test]
async fn what_nobody_writes_on_purpose_breaks_no_view() {
    let process = Process::start("", &[]).await;
    assert!(process.serves("web.shop.localhost").await);
    let mut browser = Chromium::start("MAP evil.example 127.0.0.1").await;
    let mut page = signed_in(&mut browser, &process).await;
    go(&mut page, &process, "/tunnel/%25zz").await;
    page.until("document.title === 'Tunnel %zz · adit' && document.body.innerText.includes('○ closed')").await;
    go(&mut page, &process, "/tunnel/%zz").await;
    page.until("document.title === 'Tunnel %zz · adit' && document.body.innerText.includes('○ closed')").await;
    for filter in ["__proto__:x", "constructor:x", "is:__proto__"] {
        go(&mut page, &process, &format!("/requests?q={filter}")).await;
        page.until(&format!("{COUNT} === '0 of 1'")).await;
    }
}
