//! The actions of keys that ask adit, or another program.

use super::*;

/// An action of a key that takes longer than a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Quit,
    Suspend,
    /// A POST to this path of the API.
    Post(String),
    /// Show the details of a tunnel.
    Tunnel(String),
    Request(String),
    Copy(String, &'static str),
    /// Copy the URL, or the command, of the line with this id.
    CopyUrl(String),
    CopyCommand(String),
    Open(String),
}

/// Message about a line without a URL.
const NO_URL: &str = "it has no URL";

/// Result of an action.
pub(super) enum Outcome {
    /// A message to show briefly.
    Said(String),
    /// A title and lines to show.
    Shows(String, Vec<String>),
}

/// Performs an action.
pub(super) async fn act(socket: PathBuf, pane: Pane, wish: Wish) -> Outcome {
    let done = match wish {
        Wish::Quit | Wish::Suspend => Ok(Outcome::Said(String::new())),
        Wish::Post(path) => Ok(Outcome::Said(match socket::post(&socket, &path).await {
            Ok(()) if path.ends_with("/stop") => "stopped".to_owned(),
            Ok(()) if path.ends_with("/replay") => "sent again".to_owned(),
            Ok(()) => "another session opens".to_owned(),
            Err(error) => format!("failed: {error}"),
        })),
        Wish::Tunnel(id) => tunnel(&socket, &id).await.map(|found| Outcome::Shows(id, tunnel_lines(&found))),
        Wish::Request(id) => {
            let found = request(&socket, &id).await;
            found.map(|found| Outcome::Shows(format!("request {id}"), request_lines(&found)))
        }
        Wish::Copy(text, what) => {
            let said = format!("copied {what}: {text}");
            Ok(Outcome::Said(copied(text, said).await))
        }
        Wish::CopyUrl(id) => copy_url(&socket, pane, &id).await.map(Outcome::Said),
        Wish::CopyCommand(id) => command(&socket, pane, &id).await.map(Outcome::Said),
        Wish::Open(id) => open(&socket, pane, &id).await.map(Outcome::Said),
    };
    done.unwrap_or_else(|error| Outcome::Said(error.to_string()))
}

async fn tunnel(socket: &Path, id: &str) -> Result<TunnelAnswer, CallError> {
    socket::get(socket, &format!("tunnels/{}", socket::escape(id))).await
}

async fn request(socket: &Path, id: &str) -> Result<RequestAnswer, CallError> {
    socket::get(socket, &format!("requests/{id}")).await
}

/// Copies the command for a line, and returns the message about it.
async fn command(socket: &Path, pane: Pane, id: &str) -> Result<String, CallError> {
    let (command, none) = match pane {
        Pane::Requests => (request(socket, id).await?.exchange.map(|kept| kept.curl), "its headers are not kept"),
        _ => (tunnel(socket, id).await?.kubectl, "kubectl has no command for this"),
    };
    match command {
        Some(text) => Ok(copied(text, "copied the command".to_owned()).await),
        None => Ok(none.to_owned()),
    }
}

/// Returns the URLs of a line: that of a request, or the names of a tunnel.
async fn urls(socket: &Path, pane: Pane, id: &str) -> Result<Vec<String>, CallError> {
    Ok(match pane {
        Pane::Requests => request(socket, id).await?.exchange.map(|kept| kept.url).into_iter().collect(),
        _ => tunnel(socket, id).await?.names,
    })
}

/// Copies the URL of a line, and returns the message about it.
async fn copy_url(socket: &Path, pane: Pane, id: &str) -> Result<String, CallError> {
    let mut urls = urls(socket, pane, id).await?;
    urls.sort_by_key(|url| !url.starts_with("http"));
    match urls.into_iter().next() {
        Some(url) => Ok(copied(url.clone(), format!("copied the URL: {url}")).await),
        None => Ok(NO_URL.to_owned()),
    }
}

/// Opens the URL of a line, and returns the message about it.
async fn open(socket: &Path, pane: Pane, id: &str) -> Result<String, CallError> {
    let Some(url) = urls(socket, pane, id).await?.into_iter().find(|name| name.starts_with("http")) else {
        return Ok(NO_URL.to_owned());
    };
    let opened = url.clone();
    match spawn_blocking(move || ui::open(&opened)).await {
        Ok(true) => Ok(format!("opened {url}")),
        _ => Ok(format!("no program opens a browser here: {url}")),
    }
}

async fn copied(text: String, said: String) -> String {
    clipboard::copy(text).await.map_or_else(|error| error.to_string(), |()| said)
}

fn tunnel_lines(found: &TunnelAnswer) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(tunnel) = &found.tunnel {
        lines.push(format!("state       {}", tunnel.state));
        lines.push(format!("pods        {}", tunnel.pods.join(", ")));
        lines.push(format!("transport   {}", tunnel.transport.as_deref().unwrap_or("-")));
        lines.push(format!("streams     {} open, {} in all", tunnel.streams, tunnel.streams_total));
        lines.push(format!("requests    {}, {} failed", tunnel.requests, tunnel.errors));
        lines.push(format!("bytes       {} down, {} up", amount(tunnel.bytes_down), amount(tunnel.bytes_up)));
        if let (Some(p50), Some(p95)) = (tunnel.first_byte_ms.p50, tunnel.first_byte_ms.p95) {
            lines.push(format!("first byte  p50 {p50} ms, p95 {p95} ms"));
        }
        lines.extend(tunnel.last_error.as_ref().map(|error| format!("last error  {error}")));
    } else {
        lines.push("closed".to_owned());
    }
    lines.extend(found.names.iter().map(|name| format!("name        {name}")));
    lines.extend(found.kubectl.iter().map(|command| format!("kubectl     {command}")));
    lines.extend([String::new(), "events, newest first".to_owned()]);
    lines.extend(
        found.events.iter().map(|event| format!("{}  {:<10} {}", panes::clock(&event.time), event.event, event.text)),
    );
    lines
}

fn request_lines(found: &RequestAnswer) -> Vec<String> {
    let row = &found.request;
    let mut lines = vec![
        format!("{} {}{}", row.method.as_deref().unwrap_or(&row.kind), row.host, row.path),
        format!("status      {}", row.status.map_or_else(|| "-".to_owned(), |status| status.to_string())),
        format!("pod         {}", row.pod.as_deref().unwrap_or("-")),
        format!("tunnel      {}", row.tunnel.as_deref().unwrap_or("-")),
    ];
    let millis = |name: &str, millis: Option<f64>| millis.map(|millis| format!("{name}{millis} ms"));
    lines.extend(millis("tunnel      ", row.tunnel_ms));
    lines.extend(millis("connection  ", row.connected_ms));
    lines.extend(millis("first byte  ", row.first_byte_ms));
    lines.extend(millis("all         ", row.took_ms));
    lines.push(format!("bytes       {} down, {} up", amount(row.bytes_down), amount(row.bytes_up)));
    lines.extend(row.error.as_ref().map(|error| format!("error       {error}")));
    if let Some(kept) = &found.exchange {
        for (title, headers) in [("request", &kept.request_headers), ("answer", &kept.response_headers)] {
            lines.extend([String::new(), title.to_owned()]);
            lines.extend(headers.iter().map(|(name, value)| format!("  {name}: {value}")));
        }
        lines.extend([String::new(), kept.curl.clone()]);
        lines.extend(kept.no_replay.as_ref().map(|reason| format!("no replay: {reason}")));
    }
    lines
}
