//! The three panes as tables: columns, rows, order, and filter.

use super::model::{Model, is_error};
use crate::{
    admin::api::answers::{LogRow, Row, Tunnel},
    printable,
};

/// A pane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pane {
    #[default]
    Tunnels,
    Requests,
    Log,
}

impl Pane {
    pub const ALL: [Self; 3] = [Self::Tunnels, Self::Requests, Self::Log];

    pub fn title(self) -> &'static str {
        match self {
            Self::Tunnels => "Tunnels",
            Self::Requests => "Requests",
            Self::Log => "Log",
        }
    }

    pub fn next(self) -> Self {
        match self {
            Self::Tunnels => Self::Requests,
            Self::Requests => Self::Log,
            Self::Log => Self::Tunnels,
        }
    }

    /// Returns names and widths of the columns, the most important first; narrow terminals omit the last ones. Negative width:
    /// aligned to the right.
    pub fn columns(self) -> &'static [(&'static str, i16)] {
        match self {
            Self::Tunnels => &[
                ("TUNNEL", 32),
                ("STATE", 10),
                ("STREAMS", -7),
                ("REQS", -8),
                ("ERR", -6),
                ("IDLE", -8),
                ("P50 MS", -8),
                ("DOWN", -10),
                ("UP", -10),
                ("PODS", 40),
                ("TRANSPORT", 20),
            ],
            Self::Requests => &[
                ("TIME", 8),
                ("METHOD", 9),
                ("HOST", 24),
                ("PATH", 20),
                ("STATUS", -6),
                ("MS", -7),
                ("POD", 22),
                ("FIRST MS", -8),
                ("BYTES", -10),
                ("NOTE", 30),
            ],
            Self::Log => &[("TIME", 8), ("LEVEL", 5), ("TEXT", 400)],
        }
    }
}

/// Colour of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Plain,
    Dim,
    Good,
    Warn,
    Bad,
}

/// A line of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Id of the tunnel, the request or the log line.
    pub key: String,
    pub cells: Vec<String>,
    pub mood: Mood,
    /// Sort key of each column.
    order: Vec<Order>,
}

#[derive(Clone, Debug, PartialEq)]
enum Order {
    Number(f64),
    Text,
}

/// The user's choices for a pane: filter and sort order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Words that a line must contain; with `!` before it, must not contain.
    pub filter: String,
    pub only_errors: bool,
    /// Column, and whether the largest comes first. `None`: the pane's own order.
    pub sort: Option<(usize, bool)>,
}

/// Returns the lines of a pane.
pub fn lines(model: &Model, pane: Pane, view: &View) -> Vec<Line> {
    let mut lines: Vec<Line> = match pane {
        Pane::Tunnels => model
            .tunnels
            .values()
            .filter(|tunnel| !view.only_errors || tunnel.state == "failed" || tunnel.recent_errors > 0)
            .map(of_tunnel)
            .collect(),
        Pane::Requests => {
            let rows = model.shown_requests().values().rev();
            rows.filter(|row| !view.only_errors || is_error(row)).map(of_request).collect()
        }
        Pane::Log => {
            let is_bad = |line: &&LogRow| !view.only_errors || matches!(line.level.as_str(), "error" | "warn");
            model.log.iter().rev().filter(is_bad).map(of_log).collect()
        }
    };
    let words: Vec<String> = view.filter.split_whitespace().map(str::to_lowercase).collect();
    lines.retain(|line| {
        let text = line.cells.join(" ").to_lowercase();
        words.iter().all(|word| match word.strip_prefix('!') {
            Some(word) if !word.is_empty() => !text.contains(word),
            _ => text.contains(word.as_str()),
        })
    });
    if let Some((column, is_down)) = view.sort {
        lines.sort_by(|a, b| {
            let order = match (a.order.get(column), b.order.get(column)) {
                (Some(Order::Number(a)), Some(Order::Number(b))) => a.total_cmp(b),
                _ => a.cells.get(column).cmp(&b.cells.get(column)),
            };
            if is_down { order.reverse() } else { order }
        });
    }
    lines
}

fn line(key: String, mood: Mood, cells: Vec<(String, Option<f64>)>) -> Line {
    let order = cells.iter().map(|(_, number)| number.map_or(Order::Text, Order::Number)).collect();
    Line { key, cells: cells.into_iter().map(|(cell, _)| printable::line(&cell)).collect(), mood, order }
}

fn of_tunnel(tunnel: &Tunnel) -> Line {
    let mood = match tunnel.state.as_str() {
        "failed" => Mood::Bad,
        "starting" => Mood::Warn,
        "running" if tunnel.idle_seconds.is_none() => Mood::Good,
        "running" => Mood::Plain,
        _ => Mood::Dim,
    };
    let number = |number: u64| (number.to_string(), Some(number as f64));
    let size = |bytes: u64| (super::amount(bytes), Some(bytes as f64));
    let idle = tunnel.idle_seconds.map_or_else(|| "in use".to_owned(), |seconds| format!("{seconds}s"));
    let text = |text: &str| (text.to_owned(), None);
    line(
        tunnel.id.clone(),
        mood,
        vec![
            text(&tunnel.id),
            text(&tunnel.state),
            number(tunnel.streams),
            number(tunnel.requests),
            number(tunnel.errors),
            (idle, Some(tunnel.idle_seconds.map_or(-1.0, |seconds| seconds as f64))),
            millis(tunnel.first_byte_ms.p50),
            size(tunnel.bytes_down),
            size(tunnel.bytes_up),
            text(&tunnel.pods.join(" ")),
            text(tunnel.transport.as_deref().unwrap_or_default()),
        ],
    )
}

fn of_request(row: &Row) -> Line {
    let mood = match row.status {
        _ if is_error(row) => Mood::Bad,
        Some(status) if status >= 400 => Mood::Warn,
        _ if row.took_ms.is_none() => Mood::Good,
        _ => Mood::Plain,
    };
    let text = |text: &str| (text.to_owned(), None);
    let host = row.host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok());
    let host = if row.method.is_some() { host.map_or(row.host.as_str(), |(host, _)| host) } else { &row.host };
    let status = match (row.status, row.took_ms) {
        (Some(status), _) => status.to_string(),
        (None, None) => "open".to_owned(),
        (None, Some(_)) => row.error.as_ref().map_or_else(String::new, |_| "broken".to_owned()),
    };
    let kind = if row.kind == "http" { row.method.as_deref().unwrap_or("http") } else { &row.kind };
    let mut note = Vec::new();
    note.extend(row.replay_of.map(|of| format!("replay of {of}")));
    note.extend((row.retries > 0).then(|| format!("sent {} times", row.retries + 1)));
    note.extend(row.error.clone());
    let bytes = row.bytes_up + row.bytes_down;
    line(
        row.id.to_string(),
        mood,
        vec![
            (clock(&row.time), Some(row.id as f64)),
            text(kind),
            text(host),
            text(&row.path),
            (status, row.status.map(f64::from).or(Some(0.0))),
            millis(row.took_ms),
            text(row.pod.as_deref().unwrap_or_default()),
            millis(row.first_byte_ms),
            (super::amount(bytes), Some(bytes as f64)),
            text(&note.join(", ")),
        ],
    )
}

fn of_log(row: &LogRow) -> Line {
    let mood = match row.level.as_str() {
        "error" => Mood::Bad,
        "warn" => Mood::Warn,
        "info" => Mood::Plain,
        _ => Mood::Dim,
    };
    let time = (clock(&row.time), Some(row.id as f64));
    line(row.id.to_string(), mood, vec![time, (row.level.clone(), None), (row.text.clone(), None)])
}

/// Returns the local time of day.
pub fn clock(time: &str) -> String {
    let local = time.parse::<jiff::Timestamp>().map(|time| time.to_zoned(jiff::tz::TimeZone::system()));
    local.map_or_else(|_| time.to_owned(), |time| time.strftime("%H:%M:%S").to_string())
}

fn millis(millis: Option<f64>) -> (String, Option<f64>) {
    let text = match millis {
        Some(millis) if millis < 10.0 => format!("{millis:.1}"),
        Some(millis) => format!("{millis:.0}"),
        None => String::new(),
    };
    (text, Some(millis.unwrap_or(f64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn row(id: u64, path: &str, status: u16, took_ms: f64) -> Row {
        serde_json::from_value(serde_json::json!({
            "id": id, "kind": "http", "time": "2026-01-01T00:00:00Z", "connection": 1, "method": "GET",
            "host": "web.shop.localhost:8989", "path": path, "status": status, "error": null, "route": null, "tunnel": null,
            "pod": null, "retries": 0, "replay_of": null, "grpc_status": null, "messages": 0, "messages_up": 0, "tunnel_ms": null, "connected_ms": null,
            "first_byte_ms": null, "took_ms": took_ms, "bytes_up": 0, "bytes_down": 0
        }))
        .unwrap()
    }

    fn shown(view: &View) -> Vec<String> {
        let mut model = Model::default();
        for row in [row(1, "/a", 200, 30.0), row(2, "/b", 500, 4.0), row(3, "/api", 404, 200.0)] {
            model.requests.insert(row.id, row);
        }
        lines(&model, Pane::Requests, view).into_iter().map(|line| line.cells[3].clone()).collect()
    }

    #[test]
    fn the_newest_is_first_unless_it_is_sorted() {
        assert_eq!(shown(&View::default()), ["/api", "/b", "/a"]);
        assert_eq!(shown(&View { sort: Some((5, false)), ..View::default() }), ["/b", "/a", "/api"]);
        assert_eq!(shown(&View { sort: Some((5, true)), ..View::default() }), ["/api", "/a", "/b"]);
        assert_eq!(shown(&View { sort: Some((3, false)), ..View::default() }), ["/a", "/api", "/b"]);
    }

    #[test]
    fn a_filter_has_words_and_their_inverse() {
        let filter = |filter: &str| shown(&View { filter: filter.into(), ..View::default() });
        assert_eq!(filter("API"), ["/api"]);
        assert_eq!(filter("web !404"), ["/b", "/a"]);
        assert_eq!(filter("!"), <Vec<String>>::new(), "an exclamation mark alone is a word");
        assert_eq!(shown(&View { only_errors: true, ..View::default() }), ["/b"]);
    }

    #[test]
    fn a_terminal_obeys_no_path() {
        let mut model = Model::default();
        model.requests.insert(1, row(1, "/\u{1b}[2J\u{7}", 200, 1.0));
        assert_eq!(lines(&model, Pane::Requests, &View::default())[0].cells[3], "/ [2J ");
    }
}
