//! The first state of a view as HTML: readable before the script runs, and without it.

use std::time::Duration;

use tokio::time::timeout;

use crate::{
    admin::{
        api::source::Source,
        api::{
            answers::{Overview, Status, Tunnel},
            services::{self, Query},
        },
    },
    html::Html,
};

/// Maximum number of rows that browsers with JavaScript get before the script runs.
const SHORT: usize = 100;

/// Time limit for an API server in the first state; the script asks again.
const PATIENCE: Duration = Duration::from_secs(2);

/// Returns a view that needs the script.
pub fn needs_script() -> Html {
    let mut html = Html::default();
    html.raw("<noscript><p>This view needs JavaScript.</p></noscript>");
    html
}

/// Returns the status, and the problems that need a person.
pub fn now(source: &Source) -> Html {
    let status = Status::of(source);
    let mut html = Html::default();
    html.raw("<h1>Now</h1>");
    overview(&mut html, &status.overview);
    html.raw("<h2>Needs attention</h2>");
    if status.attention.is_empty() {
        html.element("p", "Nothing.");
    }
    for one in &status.attention {
        html.raw("<article class=\"need\">").element("h3", &one.title);
        for text in [&one.cause, &one.hint].into_iter().flatten() {
            html.element("p", text);
        }
        if let Some(command) = &one.command {
            html.element("pre", command);
        }
        html.raw("</article>");
    }
    html.raw("<h2>Tunnels</h2>");
    match status.tunnels.is_empty() {
        true => {
            html.element("p", "None: one opens with the first connection to a Service.");
        }
        false => tunnels(&mut html, &status.tunnels),
    }
    html
}

fn overview(html: &mut Html, overview: &Overview) {
    html.raw("<dl class=\"facts\">");
    let listens = overview.http.iter().chain(&overview.tcp).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let config = overview.config.as_ref().map_or_else(|| "none".to_owned(), |file| file.display().to_string());
    for (name, value) in [
        ("Version", overview.version.clone()),
        ("Context", overview.context.clone().unwrap_or_else(|| "none".to_owned())),
        ("Listens on", listens),
        ("Configuration", format!("{config}, loaded at {}", overview.loaded_at)),
    ] {
        html.element("dt", name).element("dd", value);
    }
    html.raw("</dl>");
}

fn tunnels(html: &mut Html, tunnels: &[Tunnel]) {
    html.raw("<table><caption>Tunnels</caption><thead><tr>");
    for name in ["Tunnel", "State", "Pods", "Streams", "Requests", "Errors"] {
        html.raw("<th scope=\"col\">").text(name).raw("</th>");
    }
    html.raw("</tr></thead><tbody>");
    for tunnel in tunnels {
        let address = percent_encoding::utf8_percent_encode(&tunnel.id, percent_encoding::NON_ALPHANUMERIC);
        html.raw("<tr><th scope=\"row\">").link(format_args!("/tunnel/{address}"), &tunnel.id).raw("</th>");
        html.element("td", &tunnel.state).element("td", tunnel.pods.join(", ")).element("td", tunnel.streams);
        html.element("td", tunnel.requests).element("td", tunnel.errors).raw("</tr>");
    }
    html.raw("</tbody></table>");
}

/// Returns the routes, and the Services of the default context.
pub async fn services(source: &Source) -> Html {
    let query = Query { pods: true, ..Query::default() };
    let router = source.router();
    let found = timeout(PATIENCE, services::list(&source.clusters, &router, &query, source.facts().port())).await;
    let mut html = Html::default();
    html.raw("<h1>Services</h1>");
    let Ok(found) = found else {
        html.element("p", "The API server has not answered yet.");
        return html;
    };
    for problem in &found.problems {
        html.raw("<article class=\"need\">").element("h3", &problem.message);
        for text in [&problem.cause, &problem.hint].into_iter().flatten() {
            html.element("p", text);
        }
        html.raw("</article>");
    }
    // The script replaces the table at once, so in browsers that run it a long table would only cost time.
    let is_long = found.services.len() > SHORT;
    html.raw(if is_long { "<noscript>" } else { "" });
    html.raw("<table><caption>Services and routes</caption><thead><tr>");
    for name in ["Name", "Port", "Context", "Ready", "Open", "Target"] {
        html.raw("<th scope=\"col\">").text(name).raw("</th>");
    }
    html.raw("</tr></thead><tbody>");
    for service in &found.services {
        html.raw("<tr><th scope=\"row\">").text(&service.name).raw("</th>");
        html.element("td", service.port.as_deref().unwrap_or_default());
        html.element("td", service.context.as_deref().unwrap_or_default());
        let ready = service.ready.zip(service.pods).map(|(ready, pods)| format!("{ready}/{pods}"));
        html.element("td", ready.unwrap_or_default()).raw("<td>");
        match (&service.address, service.speaks.as_str()) {
            // A wildcard is not a URL.
            (None, "http" | "unknown") if service.url.is_empty() => {
                html.text("needs an alias of its context (contexts)")
            }
            (None, "http" | "unknown") if !service.name.starts_with('*') => html.link(&service.url, &service.url),
            (Some(address), _) => html.text(address),
            (None, _) => html.text(service.command.as_deref().unwrap_or("needs a route of tcp")),
        };
        html.raw("</td>").element("td", &service.target).raw("</tr>");
    }
    html.raw("</tbody></table>");
    html.raw(if is_long { "</noscript>" } else { "" });
    html
}
