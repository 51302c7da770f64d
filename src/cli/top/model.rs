//! Data of `adit top`: the last snapshot with the changes since.

use std::collections::{BTreeMap, VecDeque};

use crate::admin::api::{
    answers::{LogRow, Overview, Row, Second, Tunnel},
    attention::Attention,
    feed::{Change, Snapshot},
};

/// Maximum number of requests and of log lines.
const MOST_ROWS: usize = 1_000;
const MOST_SECONDS: usize = 120;

#[derive(Default)]
pub struct Model {
    pub status: Option<Overview>,
    pub attention: Vec<Attention>,
    pub tunnels: BTreeMap<String, Tunnel>,
    /// Requests by id.
    pub requests: BTreeMap<u64, Row>,
    pub log: VecDeque<LogRow>,
    /// Seconds, oldest first.
    pub seconds: VecDeque<Second>,
    /// Requests at the time of the pause. `None`: not paused.
    pub paused: Option<BTreeMap<u64, Row>>,
}

impl Model {
    pub fn snapshot(&mut self, snapshot: Snapshot) {
        let Snapshot { status, attention, tunnels, requests, seconds, .. } = snapshot;
        if self.status.as_ref().is_some_and(|known| known.started != status.started) {
            self.requests.clear();
            self.paused = self.paused.is_some().then(BTreeMap::new);
            self.log.clear();
        }
        (self.status, self.attention) = (Some(status), attention);
        self.tunnels = tunnels.into_iter().map(|tunnel| (tunnel.id.clone(), tunnel)).collect();
        self.take_requests(requests);
        self.seconds = seconds.into();
        // The last second is incomplete.
        self.seconds.pop_back();
        self.trim();
    }

    pub fn change(&mut self, change: Change) {
        let Change { status, attention, tunnels, closed, requests, seconds, log, .. } = change;
        self.status = status.or(self.status.take());
        self.attention = attention.unwrap_or_else(|| std::mem::take(&mut self.attention));
        for tunnel in tunnels {
            self.tunnels.insert(tunnel.id.clone(), tunnel);
        }
        for id in closed {
            self.tunnels.remove(&id);
        }
        self.take_requests(requests);
        self.log(log);
        self.seconds.extend(seconds);
        self.trim();
    }

    /// Adds lines of the log; the argument has the newest first.
    pub fn log(&mut self, lines: Vec<LogRow>) {
        let last = self.log.back().map_or(0, |line| line.id);
        self.log.extend(lines.into_iter().rev().filter(|line| line.id > last));
        while self.log.len() > MOST_ROWS {
            self.log.pop_front();
        }
    }

    /// Replaces the requests by all that adit keeps: events may have left some out.
    pub fn all_requests(&mut self, requests: Vec<Row>) {
        self.requests.clear();
        self.take_requests(requests);
    }

    fn take_requests(&mut self, requests: Vec<Row>) {
        self.requests.extend(requests.into_iter().map(|row| (row.id, row)));
        while self.requests.len() > MOST_ROWS {
            // adit evicts in the same order: ended requests first, then running ones.
            let ended = self.requests.values().find(|row| row.took_ms.is_some()).map(|row| row.id);
            let Some(oldest) = ended.or_else(|| self.requests.keys().next().copied()) else { return };
            self.requests.remove(&oldest);
        }
    }

    /// Returns the requests that are shown.
    pub fn shown_requests(&self) -> &BTreeMap<u64, Row> {
        self.paused.as_ref().unwrap_or(&self.requests)
    }

    pub fn pause(&mut self) {
        self.paused = self.paused.is_none().then(|| self.requests.clone());
    }

    fn trim(&mut self) {
        while self.seconds.len() > MOST_SECONDS {
            self.seconds.pop_front();
        }
    }

    /// Returns a rate for each of the last seconds, oldest first. Seconds without an entry are 0.
    pub fn rates(&self, read: impl Fn(&Second) -> f64, count: usize, now: jiff::Timestamp) -> Vec<f64> {
        let at = |second: &Second| Some(second.time.parse::<jiff::Timestamp>().ok()?.as_second());
        let by_second: BTreeMap<i64, f64> =
            self.seconds.iter().filter_map(|second| Some((at(second)?, read(second)))).collect();
        let last = now.as_second() - 1;
        (0..count as i64).rev().map(|back| by_second.get(&(last - back)).copied().unwrap_or_default()).collect()
    }
}

/// Returns whether a request failed, and not by its client's fault.
pub fn is_error(row: &Row) -> bool {
    match row.status {
        Some(status) => status >= 500 || (row.error.is_some() && status < 400),
        None => row.error.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_log_are_taken_once() {
        let mut model = Model::default();
        let line = |id| LogRow { id, time: String::new(), level: "info".into(), text: id.to_string() };
        model.log(vec![line(3), line(2)]);
        model.log(vec![line(4), line(3)]);
        assert_eq!(model.log.iter().map(|line| line.id).collect::<Vec<_>>(), [2, 3, 4]);
        model.log((10..3_000).rev().map(line).collect());
        assert_eq!((model.log.len(), model.log.back().map(|line| line.id)), (MOST_ROWS, Some(2_999)));
    }

    #[test]
    fn requests_that_events_have_left_out_are_taken_from_the_whole_list() {
        let mut model = Model::default();
        let row = |id: u64, took: Option<f64>| -> Row {
            serde_json::from_value(serde_json::json!({
                "id": id, "kind": "tcp", "time": "", "connection": 1, "method": null, "host": "", "path": "", "status": null,
                "error": null, "route": null, "tunnel": null, "pod": null, "retries": 0, "replay_of": null, "grpc_status": null,
                "messages": 0, "tunnel_ms": null, "connected_ms": null, "first_byte_ms": null, "took_ms": took, "bytes_up": 0,
                "bytes_down": 0
            }))
            .unwrap()
        };
        model.take_requests((1..=3).map(|id| row(id, None)).collect());
        model.pause();
        model.all_requests(vec![row(4, None), row(3, None), row(2, Some(1.0))]);
        assert_eq!(model.shown_requests().len(), 3, "what is paused stays as it is");
        model.pause();
        let shown: Vec<_> = model.shown_requests().values().map(|row| (row.id, row.took_ms.is_some())).collect();
        assert_eq!(shown, [(2, true), (3, false), (4, false)]);
        model.take_requests((5..=MOST_ROWS as u64 + 4).map(|id| row(id, Some(1.0))).collect());
        assert_eq!(
            model.requests.keys().take(3).copied().collect::<Vec<_>>(),
            [3, 4, 7],
            "what goes on stays the longest"
        );
    }

    #[test]
    fn seconds_in_which_nothing_happened_count_as_none() {
        let second = |time: &str, requests| Second {
            time: time.into(),
            requests,
            errors: 0,
            bytes_up: 0,
            bytes_down: 0,
            connections: 0,
        };
        let mut model = Model::default();
        model.seconds.extend([second("2026-01-01T00:00:01Z", 4), second("2026-01-01T00:00:03.5Z", 2)]);
        let now = "2026-01-01T00:00:05Z".parse().unwrap();
        assert_eq!(model.rates(|second| f64::from(second.requests), 5, now), [0.0, 4.0, 0.0, 2.0, 0.0]);
    }
}
