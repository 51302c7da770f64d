//! Counters, and their OpenMetrics 1.0 text.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Media type of [`Exposition`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Maximum number of routes with their own counts. Clients choose the names, so the rest is counted together.
const MOST_ROUTES: usize = 1000;

/// Upper bounds of the times to first byte, in milliseconds.
const BUCKETS: [u64; 12] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 10_000];

/// The counters of one process.
#[derive(Default)]
pub struct Metrics {
    pub http_connections: Counted,
    pub tls_connections: Counted,
    pub tcp_connections: Counted,
    pub sni_connections: Counted,
    pub socks_connections: Counted,
    pub connect_connections: Counted,
    /// Connections that were silent, or neither HTTP nor TLS.
    pub unknown_connections: AtomicU64,
    /// Connections refused at the open-file limit, with or without an answer.
    pub refused_connections: AtomicU64,
    /// Requests sent again because their connection to the pod had ended.
    pub retries: AtomicU64,
    /// Refused clients of SNI listeners.
    pub refused_names: AtomicU64,
    requests: Mutex<BTreeMap<Arc<str>, BTreeMap<u16, u64>>>,
    first_byte: [AtomicU64; BUCKETS.len() + 1],
    first_byte_micros: AtomicU64,
}

/// Total number of connections, and number of open ones.
#[derive(Default)]
pub struct Counted {
    total: AtomicU64,
    open: AtomicU64,
}

/// Counts as an open connection until it is dropped.
pub struct Open<'a>(&'a Counted);

impl Counted {
    pub fn open(&self) -> Open<'_> {
        self.total.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        Open(self)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// Counts an answered request. `route`: `None` if the request has no route.
    pub fn request(&self, route: Option<&Arc<str>>, status: u16, first_byte: Option<Duration>) {
        let mut requests = self.requests.lock().expect("no panic while the lock is held");
        let by_status = match route.and_then(|route| requests.get_mut(route)) {
            Some(known) => known,
            None => {
                let name: Arc<str> = match route {
                    Some(route) if requests.len() < MOST_ROUTES => route.clone(),
                    Some(_) => "other".into(),
                    None => "none".into(),
                };
                requests.entry(name).or_default()
            }
        };
        *by_status.entry(status).or_default() += 1;
        drop(requests);
        if let Some(took) = first_byte {
            let millis = took.as_micros().div_ceil(1000);
            let bucket = BUCKETS.iter().position(|bound| millis <= u128::from(*bound)).unwrap_or(BUCKETS.len());
            self.first_byte[bucket].fetch_add(1, Ordering::Relaxed);
            self.first_byte_micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
        }
    }

    /// Appends all metrics.
    pub fn write(&self, to: &mut Exposition) {
        let connections = [
            ("http", &self.http_connections),
            ("tls", &self.tls_connections),
            ("tcp", &self.tcp_connections),
            ("sni", &self.sni_connections),
            ("socks", &self.socks_connections),
            ("connect", &self.connect_connections),
        ];
        to.family("adit_connections", "counter", "Client connections, by protocol.");
        for (kind, counted) in connections {
            to.sample("adit_connections_total", &[("kind", kind)], counted.total.load(Ordering::Relaxed));
        }
        let unknown = self.unknown_connections.load(Ordering::Relaxed);
        to.sample("adit_connections_total", &[("kind", "unknown")], unknown);
        to.family("adit_connections_open", "gauge", "Open client connections, by protocol.");
        for (kind, counted) in connections {
            to.sample("adit_connections_open", &[("kind", kind)], counted.open.load(Ordering::Relaxed));
        }
        for (name, help, counter) in [
            ("adit_connections_refused", "Connections refused at the open-file limit.", &self.refused_connections),
            ("adit_retries", "Requests sent again because their connection to the pod had ended.", &self.retries),
            ("adit_names_refused", "Clients of SNI listeners that were refused.", &self.refused_names),
        ] {
            to.family(name, "counter", help);
            to.sample(&format!("{name}_total"), &[], counter.load(Ordering::Relaxed));
        }
        to.family("adit_requests", "counter", "HTTP requests, by route and status.");
        for (route, by_status) in &*self.requests.lock().expect("no panic while the lock is held") {
            for (status, count) in by_status {
                to.sample("adit_requests_total", &[("route", route), ("status", &status.to_string())], *count);
            }
        }
        let name = "adit_first_byte_seconds";
        to.family(name, "histogram", "From a request to the first byte of the backend's answer.");
        let mut count = 0;
        for (at, bucket) in self.first_byte.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            let bound = BUCKETS.get(at).map_or("+Inf".to_owned(), |millis| format!("{:?}", *millis as f64 / 1000.0));
            to.sample(&format!("{name}_bucket"), &[("le", &bound)], count);
        }
        to.sample(&format!("{name}_sum"), &[], self.first_byte_micros.load(Ordering::Relaxed) as f64 / 1e6);
        to.sample(&format!("{name}_count"), &[], count);
    }
}

/// Metrics as text.
#[derive(Default)]
pub struct Exposition(String);

impl Exposition {
    /// Starts a metric family. `kind`: `counter`, `gauge` or `histogram`.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# TYPE {name} {kind}\n# HELP {name} {help}");
    }

    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (at, (label, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{value}\"", if at == 0 { '{' } else { ',' });
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// Returns the text with its end marker.
    pub fn finish(mut self) -> String {
        self.0.push_str("# EOF\n");
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_told_by_route_and_status() {
        let metrics = Metrics::default();
        let _open = metrics.http_connections.open();
        let route: Arc<str> = "web \"x\".localhost".into();
        metrics.request(Some(&route), 200, Some(Duration::from_micros(1500)));
        metrics.request(Some(&route), 200, Some(Duration::from_secs(60)));
        metrics.request(None, 404, None);
        let mut text = Exposition::default();
        metrics.write(&mut text);
        let text = text.finish();
        for line in [
            "adit_connections_total{kind=\"http\"} 1",
            "adit_connections_open{kind=\"http\"} 1",
            "adit_requests_total{route=\"web \\\"x\\\".localhost\",status=\"200\"} 2",
            "adit_requests_total{route=\"none\",status=\"404\"} 1",
            "adit_first_byte_seconds_bucket{le=\"0.002\"} 1",
            "adit_first_byte_seconds_bucket{le=\"+Inf\"} 2",
            "adit_first_byte_seconds_sum 60.0015",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn names_cannot_fill_the_memory() {
        let metrics = Metrics::default();
        for at in 0..2 * MOST_ROUTES {
            metrics.request(Some(&format!("{at}.localhost").into()), 200, None);
        }
        assert_eq!(metrics.requests.lock().unwrap().len(), MOST_ROUTES + 1);
    }
}
