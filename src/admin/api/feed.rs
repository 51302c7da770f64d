//! `GET /api/v1/events`: a snapshot, then the changes since, at most four times a second.
//!
//! ```text
//! id: 5e1c07aa-41
//! event: change
//! data: {"format":1,"tunnels":[...],"closed":[...],"requests":[...],"seconds":[...]}
//! ```
//!
//! While there are readers, one task compares the state every 250 ms, and encodes each change once for all readers. Readers have
//! no queues: one that has missed more than is kept gets a new snapshot on its next read. A reader that sends `Last-Event-ID`
//! resumes there. The first word of an id identifies the process, so ids of another process are not mistaken for its own.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::Mutex,
    time::Duration,
};

use bytes::Bytes;
use futures::stream;
use http::{Response, StatusCode, header::CACHE_CONTROL};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    FORMAT,
    answers::{FirstByte, LogRow, Overview, Row, Second, SignIn, Tunnel},
    attention::{self, Attention},
    failure,
};
use crate::{
    admin::{
        api::source::Source,
        http::{Body, endless, respond},
    },
    journal,
};

const EVENT_STREAM: &str = "text/event-stream";

/// Interval between two comparisons.
const EVERY: Duration = Duration::from_millis(250);

/// Maximum time without an event. A web page cannot see SSE comments, so only an event shows that adit is alive.
pub const BEAT_AFTER: Duration = Duration::from_secs(5);

/// How long the task continues after the last reader has left: the reader may come back and resume.
const LINGER: Duration = Duration::from_secs(10);

/// Maximum bytes of changes kept for readers that are behind.
const MOST_KEPT: usize = 256 * 1024;

/// Maximum number of changes sent at once. Instead of more, a snapshot is shorter.
const MOST_AT_ONCE: u64 = 40;

/// Maximum number of requests, and of log lines, in one event: the newest ones. `/api/v1/requests` and `/api/v1/log` have the
/// others.
pub const MOST_ROWS: usize = 250;

/// Maximum number of readers. More are refused.
const MOST_READERS: usize = 32;

/// The first event: everything.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Snapshot {
    #[schemars(range(min = 1, max = 1))]
    pub format: u32,
    pub status: Overview,
    pub sign_ins: Vec<SignIn>,
    /// Problems that need a person.
    pub attention: Vec<Attention>,
    pub tunnels: Vec<Tunnel>,
    /// The last 250 requests and connections, newest first.
    pub requests: Vec<Row>,
    /// The last five minutes, oldest first.
    pub seconds: Vec<Second>,
    pub first_byte_ms: FirstByte,
}

/// Changes since the event before. After 5 s without any: one of nothing, to show that adit lives.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    #[schemars(range(min = 1, max = 1))]
    pub format: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Overview>,
    /// All sign-ins, where one is new, has changed or is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sign_ins: Option<Vec<SignIn>>,
    /// All problems that need a person, if they have changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<Vec<Attention>>,
    /// Tunnels that are new or have changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tunnels: Vec<Tunnel>,
    /// The ids of tunnels that are no more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub closed: Vec<String>,
    /// Requests and connections that are new or have changed, newest first, at most 250.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<Row>,
    /// How many more there were.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: usize,
    /// Seconds that have passed. One that is left out had the connections of the one before it, and nothing else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seconds: Vec<Second>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_ms: Option<FirstByte>,
    /// New lines of the log, newest first, at most 250.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<LogRow>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// The events of one process.
pub struct Feed {
    state: Mutex<State>,
    /// Number of the last event.
    last: watch::Sender<u64>,
    /// First word of every id.
    epoch: String,
}

#[derive(Default)]
struct State {
    readers: usize,
    is_looking: bool,
    last: u64,
    /// Time of the last event.
    told: Option<Instant>,
    kept: VecDeque<(u64, Bytes)>,
    seen: Seen,
}

/// State of adit as of the last event.
#[derive(Default)]
struct Seen {
    status: Option<Overview>,
    sign_ins: Vec<SignIn>,
    attention: Vec<Attention>,
    /// Number of the last log line that was sent. `None`: no reader has come yet; earlier lines are not sent.
    line: Option<u64>,
    tunnels: BTreeMap<String, Tunnel>,
    entries: u64,
    /// The last second that was sent, and whether it was busy.
    second: Option<u64>,
    was_busy: bool,
    connections: u32,
}

impl Default for Feed {
    fn default() -> Self {
        let epoch = format!("{:08x}", RandomState::new().hash_one(std::process::id()) as u32);
        Self { state: Mutex::default(), last: watch::Sender::new(0), epoch }
    }
}

/// The next event for a reader.
enum Next {
    Changes(Bytes, u64),
    /// The reader has missed more than is kept.
    Behind,
    Nothing,
}

/// Returns the stream of events for a reader. `resumes`: id of the last event that it has received.
pub fn answer(source: &Source, resumes: Option<&str>) -> Response<Body> {
    let Some(reader) = Reader::new(source, resumes) else {
        return failure(StatusCode::SERVICE_UNAVAILABLE, "busy", format!("there are {MOST_READERS} readers already"));
    };
    let drain = source.drain().clone();
    let events = stream::unfold(reader, move |mut reader| {
        let drain = drain.clone();
        async move {
            let next = tokio::select! {
                next = reader.next() => next,
                () = drain.started() => return None,
            };
            Some((Ok::<_, std::convert::Infallible>(Frame::data(next)), reader))
        }
    });
    let mut response = respond(StatusCode::OK, EVENT_STREAM, "");
    response.headers_mut().insert(CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    endless(response.map(|_| StreamBody::new(events).boxed_unsync()))
}

/// A reader of the events.
struct Reader {
    source: Source,
    news: watch::Receiver<u64>,
    /// Number of the last event that was sent to it. `None`: none yet.
    seen: Option<u64>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.source.feed().state.lock().expect("no panic while the lock is held").readers -= 1;
    }
}

impl Reader {
    fn new(source: &Source, resumes: Option<&str>) -> Option<Self> {
        let feed = source.feed();
        let mut state = feed.state.lock().expect("no panic while the lock is held");
        if state.readers >= MOST_READERS {
            return None;
        }
        state.readers += 1;
        if !state.is_looking {
            state.is_looking = true;
            // The reader's snapshot has the earlier changes, so this first comparison only sets the state to compare with.
            feed.look(source, &mut state);
            let (source, drain) = (source.clone(), source.drain().clone());
            drain.clone().spawn(async move {
                tokio::select! {
                    () = look_on(&source) => {}
                    () = drain.started() => {}
                }
            });
        }
        let seen = resumes.and_then(|id| id.strip_prefix(&*feed.epoch)?.strip_prefix('-')?.parse().ok());
        let seen = seen.filter(|seen| *seen <= state.last);
        Some(Self { source: source.clone(), news: feed.last.subscribe(), seen })
    }

    async fn next(&mut self) -> Bytes {
        loop {
            let feed = self.source.feed();
            let Some(seen) = self.seen else { return self.snapshot() };
            match feed.after(seen) {
                Next::Changes(events, last) => {
                    self.seen = Some(last);
                    return events;
                }
                Next::Behind => return self.snapshot(),
                Next::Nothing => {}
            }
            // The source owns the sender, so it cannot be dropped before.
            let _ = self.news.changed().await;
        }
    }

    fn snapshot(&mut self) -> Bytes {
        let (source, feed) = (&self.source, self.source.feed());
        // Read the number first: an event in between is sent twice rather than never.
        let last = feed.state.lock().expect("no panic while the lock is held").last;
        let journal = source.journal();
        let (tunnels, sign_ins) = (source.tunnels(), SignIn::all(source));
        let snapshot = Snapshot {
            format: FORMAT,
            status: Overview::of(source),
            attention: attention::of(source, &tunnels, &sign_ins),
            sign_ins,
            tunnels: tunnels.iter().map(Tunnel::of).collect(),
            requests: journal.since(0).0.iter().take(MOST_ROWS).map(Row::of).collect(),
            seconds: journal.rates().iter().map(|second| Second::of(journal, second)).collect(),
            first_byte_ms: journal.first_byte().into(),
        };
        self.seen = Some(last);
        feed.event(last, "snapshot", &snapshot)
    }
}

/// Compares the state at intervals, until there have been no readers for a while.
async fn look_on(source: &Source) {
    let feed = source.feed();
    let mut unread_since: Option<Instant> = None;
    loop {
        sleep(EVERY).await;
        let mut state = feed.state.lock().expect("no panic while the lock is held");
        if state.readers > 0 {
            unread_since = None;
        } else if unread_since.get_or_insert_with(Instant::now).elapsed() >= LINGER {
            state.is_looking = false;
            state.kept.clear();
            state.seen.tunnels.clear();
            return;
        }
        feed.look(source, &mut state);
    }
}

impl Feed {
    /// Creates an event with the changes since the last one, or an empty one after [`BEAT_AFTER`].
    fn look(&self, source: &Source, state: &mut State) {
        let is_late = state.told.is_none_or(|told| told.elapsed() >= BEAT_AFTER);
        let nothing = || is_late.then(|| Change { format: FORMAT, ..Change::default() });
        let Some(change) = state.seen.change(source).or_else(nothing) else { return };
        state.told = Some(Instant::now());
        state.last += 1;
        let event = self.event(state.last, "change", &change);
        state.kept.push_back((state.last, event));
        while state.kept.iter().map(|(_, event)| event.len()).sum::<usize>() > MOST_KEPT {
            state.kept.pop_front();
        }
        self.last.send_replace(state.last);
    }

    fn after(&self, seen: u64) -> Next {
        let state = self.state.lock().expect("no panic while the lock is held");
        if seen >= state.last {
            return Next::Nothing;
        }
        let is_kept = state.kept.front().is_some_and(|(first, _)| *first <= seen + 1);
        if !is_kept || state.last - seen > MOST_AT_ONCE {
            return Next::Behind;
        }
        let mut missed = state.kept.iter().filter(|(number, _)| *number > seen).map(|(_, event)| event.clone());
        match (missed.next(), missed.next()) {
            (Some(only), None) => Next::Changes(only, state.last),
            _ => {
                let missed = state.kept.iter().filter(|(number, _)| *number > seen).map(|(_, event)| &event[..]);
                Next::Changes(missed.collect::<Vec<_>>().concat().into(), state.last)
            }
        }
    }

    fn event(&self, number: u64, name: &str, data: &impl Serialize) -> Bytes {
        let mut text = format!("id: {}-{number}\nevent: {name}\ndata: ", self.epoch).into_bytes();
        // Structs of strings and numbers always serialise, and the JSON has no line ends.
        let _ = serde_json::to_writer(&mut text, data);
        text.extend_from_slice(b"\n\n");
        text.into()
    }
}

impl Seen {
    /// Returns the changes, and updates the state to compare with. `None`: nothing has changed.
    fn change(&mut self, source: &Source) -> Option<Change> {
        let journal = source.journal();
        let mut change = Change { format: FORMAT, ..Change::default() };
        let status = Overview::of(source);
        if self.status.as_ref() != Some(&status) {
            change.status = Some(status.clone());
            self.status = Some(status);
        }
        let sign_ins = SignIn::all(source);
        let timeless = |sign_in: &SignIn| SignIn { seconds: 0, ..sign_in.clone() };
        if !sign_ins.iter().map(timeless).eq(self.sign_ins.iter().map(timeless)) {
            change.sign_ins = Some(sign_ins.clone());
        }
        let snapshots = source.tunnels();
        let attention = attention::of(source, &snapshots, &sign_ins);
        // A sign-in's hint contains its seconds, so the hint alone is not a change.
        let is_told = |one: &Attention| (one.kind.clone(), one.title.clone(), one.cause.clone(), one.command.clone());
        if !attention.iter().map(is_told).eq(self.attention.iter().map(is_told)) || change.sign_ins.is_some() {
            change.attention = Some(attention.clone());
        }
        self.attention = attention;
        self.sign_ins = sign_ins;
        let (lines, last) = source.log_since(self.line.unwrap_or(u64::MAX));
        self.line = Some(last);
        change.log = lines.iter().rev().take(MOST_ROWS).map(LogRow::of).collect();
        let mut present = BTreeMap::new();
        for tunnel in snapshots.iter().map(Tunnel::of) {
            if self.tunnels.get(&tunnel.id).is_none_or(|seen| !is_same(seen, &tunnel)) {
                change.tunnels.push(tunnel.clone());
            }
            present.insert(tunnel.id.clone(), tunnel);
        }
        change.closed = self.tunnels.keys().filter(|id| !present.contains_key(*id)).cloned().collect();
        self.tunnels = present;
        let (entries, version) = journal.since(self.entries);
        self.entries = version;
        change.skipped = entries.len().saturating_sub(MOST_ROWS);
        change.requests = entries.iter().take(MOST_ROWS).map(Row::of).collect();
        if !change.requests.is_empty() {
            change.first_byte_ms = Some(journal.first_byte().into());
        }
        let passed = journal.last_second().map(|second| second.second);
        if passed > self.second {
            let is_new = |second: &&journal::Second| Some(second.second) > self.second && Some(second.second) <= passed;
            for second in journal.rates().iter().filter(is_new) {
                let is_busy = (second.requests, second.up, second.down) != (0, 0, 0);
                // Send the first idle second too, so that charts fall to zero.
                if is_busy || self.was_busy || second.connections != self.connections {
                    change.seconds.push(Second::of(journal, second));
                }
                (self.was_busy, self.connections) = (is_busy, second.connections);
            }
            self.second = passed;
        }
        let Change { status, sign_ins, attention, tunnels, closed, requests, seconds, log, .. } = &change;
        let is_empty = status.is_none()
            && sign_ins.is_none()
            && attention.is_none()
            && (tunnels.len(), closed.len(), requests.len(), seconds.len(), log.len()) == (0, 0, 0, 0, 0);
        (!is_empty).then_some(change)
    }
}

/// Returns whether a tunnel is unchanged except for its timers.
fn is_same(before: &Tunnel, now: &Tunnel) -> bool {
    let timeless = |tunnel: &Tunnel| Tunnel {
        idle_seconds: tunnel.idle_seconds.map(|_| 0),
        closes_in_seconds: tunnel.closes_in_seconds.map(|_| 0),
        ..tunnel.clone()
    };
    timeless(before) == timeless(now)
}
