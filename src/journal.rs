//! History of this process, in fixed memory: the last requests and connections, the last events of each tunnel, and five minutes
//! of rates. The API reads it, and every view uses the API.
//!
//! | | at most | bytes each, at most | together |
//! |---|---|---|---|
//! | entries | 1,000 | 1.4 KiB | 1.4 MiB |
//! | events | 20 of each of 256 tunnels | 0.3 KiB | 1.5 MiB |
//! | rates | 300 s | 40 | 12 KiB |
//! | heads of requests | with their entries | 32 KiB | 4 MiB |
//! | bodies | while a person records a route | 256 KiB | 16 MiB |

pub mod audit;
pub mod entry;
pub mod exchange;
pub mod hidden;
pub mod history;
pub mod percentiles;
pub mod rates;
pub mod recorder;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

pub use self::{
    audit::Audit,
    entry::{Entry, Kind},
    history::{Event, Happened, History},
    percentiles::{Histogram, Percentiles},
    rates::{Rates, Second},
    recorder::Recorder,
};

/// Maximum number of entries.
pub const MOST_ENTRIES: usize = 1_000;

/// Error code of an entry for which no pod was ready.
const NOT_READY: &str = "not-ready";

/// Maximum bytes of recorded heads. Beyond it, the oldest entries lose theirs.
const MOST_OF_HEADS: usize = 4 * 1024 * 1024;

/// Maximum number of tunnels whose events are kept. More open tunnels than that all keep theirs.
const MOST_HISTORIES: usize = 256;

/// The history of one process.
pub struct Journal {
    entries: Mutex<Entries>,
    histories: Mutex<HashMap<Arc<str>, Arc<History>>>,
    rates: Mutex<Rates>,
    first_byte: Mutex<Histogram>,
    recorder: Arc<Recorder>,
    audit: RwLock<Option<Audit>>,
    /// Version of the last change of an entry.
    version: AtomicU64,
    started: (Instant, SystemTime),
}

#[derive(Default)]
struct Entries {
    kept: VecDeque<Kept>,
    next: u64,
    /// Sum of [`Kept::heads`].
    heads: usize,
}

struct Kept {
    entry: Entry,
    /// Counted bytes of its heads. The response's is added after the entry, and counts from the next change on.
    heads: usize,
}

impl Kept {
    /// Counts the heads again. `heads`: the sum over all entries.
    fn count(&mut self, heads: &mut usize) {
        *heads -= self.heads;
        self.heads = self.entry.exchange.as_ref().map_or(0, |exchange| exchange.size());
        *heads += self.heads;
    }
}

impl Entries {
    /// Returns the entry with this id.
    fn get_mut(&mut self, id: u64) -> Option<&mut Kept> {
        let at = self.kept.partition_point(|kept| kept.entry.id < id);
        self.kept.get_mut(at).filter(|kept| kept.entry.id == id)
    }

    /// Drops the heads of the oldest entries until the rest is within [`MOST_OF_HEADS`].
    fn make_room(&mut self) {
        let mut kept = self.kept.iter_mut();
        while self.heads > MOST_OF_HEADS
            && let Some(oldest) = kept.next()
        {
            oldest.entry.exchange = None;
            oldest.count(&mut self.heads);
        }
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
            histories: Mutex::default(),
            rates: Mutex::default(),
            first_byte: Mutex::default(),
            recorder: Arc::default(),
            audit: RwLock::default(),
            version: AtomicU64::new(0),
            started: (Instant::now(), SystemTime::now()),
        }
    }
}

impl Journal {
    /// Returns the start time of the process.
    pub fn started(&self) -> SystemTime {
        self.started.1
    }

    /// Sets the audit log, which gets a line for each request and connection that ends from now on. `None`: off.
    pub fn set_audit(&self, audit: Option<Audit>) {
        *self.audit.write().expect("no panic while the lock is held") = audit;
    }

    /// Waits until the audit log has all its lines, at most this long. Blocks. Returns the number of lines that are missing.
    pub fn finish_audit(&self, limit: Duration) -> usize {
        let written = self.audit.read().expect("no panic while the lock is held").as_ref().map(Audit::written);
        written.map_or(0, |written| written(limit))
    }

    /// Returns whether adit must identify the programs of its clients.
    pub fn is_audited(&self) -> bool {
        self.audit.read().expect("no panic while the lock is held").is_some()
    }

    /// Returns the recorder of bodies.
    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// Adds a request or connection that has ended.
    pub fn add(&self, entry: Entry) {
        self.count(&entry);
        self.keep(entry);
    }

    /// Adds a request or connection that is in progress. Dropping the guard ends it.
    pub fn begin(self: &Arc<Self>, mut entry: Entry) -> Ongoing {
        let started = entry.began.unwrap_or_else(Instant::now);
        entry.took = None;
        let id = self.keep(entry.clone());
        Ongoing { journal: self.clone(), entry: Entry { id, ..entry }, started }
    }

    fn keep(&self, mut entry: Entry) -> u64 {
        let entries = &mut *self.entries.lock().expect("no panic while the lock is held");
        entries.next += 1;
        (entry.id, entry.version) = (entries.next, self.next_version());
        let id = entry.id;
        if entries.kept.len() >= MOST_ENTRIES {
            // Evict the oldest entry that has ended, before any that is in progress.
            let oldest = entries.kept.iter().position(|kept| kept.entry.took.is_some()).unwrap_or(0);
            let removed = entries.kept.remove(oldest);
            entries.heads -= removed.map_or(0, |removed| removed.heads);
        }
        let mut kept = Kept { entry, heads: 0 };
        kept.count(&mut entries.heads);
        entries.kept.push_back(kept);
        entries.make_room();
        id
    }

    fn replace(&self, changed: Entry) {
        let entries = &mut *self.entries.lock().expect("no panic while the lock is held");
        let mut heads = entries.heads;
        if let Some(kept) = entries.get_mut(changed.id) {
            // Keep the current heads, or their absence: `make_room` may have dropped them meanwhile.
            let exchange = kept.entry.exchange.take();
            kept.entry = Entry { version: self.next_version(), exchange, ..changed };
            kept.count(&mut heads);
        }
        entries.heads = heads;
        entries.make_room();
    }

    fn count(&self, entry: &Entry) {
        if let Some(audit) = &*self.audit.read().expect("no panic while the lock is held") {
            audit.write(entry);
        }
        if let Some(history) = entry.tunnel.as_ref().and_then(|tunnel| self.past(tunnel)) {
            history.count(entry.first_byte, entry.is_error());
        }
        if entry.kind.is_request() {
            self.rates.lock().expect("no panic while the lock is held").request(self.second(), entry.is_error());
            if let Some(took) = entry.first_byte {
                self.first_byte.lock().expect("no panic while the lock is held").add(took);
            }
        }
    }

    /// Returns the entries that are new or changed since `version`, newest first, and the current version. 0: all entries.
    pub fn since(&self, version: u64) -> (Vec<Entry>, u64) {
        let entries = self.entries.lock().expect("no panic while the lock is held");
        let changed = entries.kept.iter().rev().map(|kept| &kept.entry).filter(|entry| entry.version > version);
        (changed.cloned().collect(), self.version.load(Ordering::Relaxed))
    }

    /// Returns the names that clients requested within `within` without a ready pod: latest first, without duplicates, at most
    /// `most`.
    pub fn wanted_in_vain(&self, within: Duration, most: usize) -> Vec<Box<str>> {
        let entries = self.entries.lock().expect("no panic while the lock is held");
        let is_recent = |entry: &&Entry| entry.began.is_some_and(|began| began.elapsed() < within);
        let mut names: Vec<Box<str>> = Vec::new();
        let is_in_vain = |entry: &&Entry| entry.error.as_deref() == Some(NOT_READY);
        for entry in entries.kept.iter().rev().map(|kept| &kept.entry).filter(is_in_vain).filter(is_recent) {
            if names.len() < most && !names.contains(&entry.host) {
                names.push(entry.host.clone());
            }
        }
        names
    }

    /// Returns an entry by its id. `None`: evicted, or never added.
    pub fn entry(&self, id: u64) -> Option<Entry> {
        let mut entries = self.entries.lock().expect("no panic while the lock is held");
        entries.get_mut(id).map(|kept| kept.entry.clone())
    }

    /// Returns the history of a tunnel, or creates it.
    pub fn history(&self, tunnel: &Arc<str>) -> Arc<History> {
        let mut histories = self.histories.lock().expect("no panic while the lock is held");
        if let Some(history) = histories.get(tunnel) {
            return history.clone();
        }
        while histories.len() >= MOST_HISTORIES {
            // An open tunnel has its history too.
            let closed = histories.iter().filter(|(_, history)| Arc::strong_count(history) == 1);
            let oldest = closed.min_by_key(|(_, history)| history.last()).map(|(id, _)| id.clone());
            let Some(oldest) = oldest else { break };
            histories.remove(&oldest);
        }
        let history = Arc::new(History::default());
        histories.insert(tunnel.clone(), history.clone());
        history
    }

    /// Returns the history of a tunnel that is open or was. `None`: there is none, or it was evicted.
    pub fn past(&self, tunnel: &str) -> Option<Arc<History>> {
        self.histories.lock().expect("no panic while the lock is held").get(tunnel).cloned()
    }

    /// Counts bytes to pods (`up`) and to clients (`down`).
    pub fn bytes(&self, up: u64, down: u64) {
        self.rates.lock().expect("no panic while the lock is held").bytes(self.second(), up, down);
    }

    /// Counts a client's connection until the guard is dropped.
    pub fn connection(self: &Arc<Self>) -> Connected {
        self.rates.lock().expect("no panic while the lock is held").connections(self.second(), 1);
        Connected(self.clone())
    }

    /// Returns the last five minutes, oldest first; the last element is the current second.
    pub fn rates(&self) -> Vec<Second> {
        self.rates.lock().expect("no panic while the lock is held").all(self.second())
    }

    /// Returns the last complete second. `None`: the process is younger than a second.
    pub fn last_second(&self) -> Option<Second> {
        let last = self.second().checked_sub(1)?;
        Some(self.rates.lock().expect("no panic while the lock is held").at(last))
    }

    /// Returns percentiles of the time to the first byte of the response, over all requests.
    pub fn first_byte(&self) -> Percentiles {
        self.first_byte.lock().expect("no panic while the lock is held").percentiles()
    }

    /// Returns the start of a second of [`Self::rates`].
    pub fn time_of(&self, second: u64) -> SystemTime {
        self.started.1 + Duration::from_secs(second)
    }

    fn second(&self) -> u64 {
        self.started.0.elapsed().as_secs()
    }

    fn next_version(&self) -> u64 {
        self.version.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Guard of an entry in progress. Dropping it records the end.
pub struct Ongoing {
    journal: Arc<Journal>,
    /// The entry, which the owner completes until the end.
    pub entry: Entry,
    started: Instant,
}

impl Ongoing {
    /// Changes the entry, and publishes it at once.
    pub fn change(&mut self, change: impl FnOnce(&mut Entry)) {
        change(&mut self.entry);
        self.journal.replace(self.entry.clone());
    }

    /// Records the error that ends it.
    pub fn error(&mut self, error: &str) {
        self.entry = self.entry.clone().with_error(error);
    }
}

impl Drop for Ongoing {
    fn drop(&mut self) {
        self.entry.took = Some(self.started.elapsed());
        self.journal.count(&self.entry);
        self.journal.replace(self.entry.clone());
    }
}

/// Guard of a client's open connection.
pub struct Connected(Arc<Journal>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.rates.lock().expect("no panic while the lock is held").connections(self.0.second(), -1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(path: &str) -> Entry {
        Entry { path: path.into(), took: Some(Duration::from_millis(1)), ..Entry::new(Kind::Http) }
    }

    #[test]
    fn the_oldest_that_has_ended_makes_room() {
        let journal = Arc::new(Journal::default());
        let open = journal.begin(Entry::new(Kind::Tcp));
        for at in 0..MOST_ENTRIES + 10 {
            journal.add(ended(&at.to_string()));
        }
        let (kept, _) = journal.since(0);
        assert_eq!((kept.len(), kept[0].path.as_ref()), (MOST_ENTRIES, "1009"));
        assert_eq!(kept.last().unwrap().id, open.entry.id, "a connection that goes on is kept");
        drop(open);
        assert!(journal.since(0).0.last().unwrap().took.is_some());
    }

    #[test]
    fn many_that_go_on_do_not_fill_the_memory() {
        let journal = Arc::new(Journal::default());
        let open: Vec<Ongoing> = (0..2 * MOST_ENTRIES).map(|_| journal.begin(Entry::new(Kind::Tcp))).collect();
        assert_eq!(journal.since(0).0.len(), MOST_ENTRIES);
        drop(open);
        assert_eq!(journal.since(0).0.len(), MOST_ENTRIES);
    }

    #[test]
    fn a_reader_gets_what_has_changed_since() {
        let journal = Arc::new(Journal::default());
        let mut open = journal.begin(Entry::new(Kind::Tcp));
        journal.add(ended("/a"));
        let (first, version) = journal.since(0);
        assert_eq!(first.iter().map(|entry| entry.id).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(journal.since(version).0, []);
        open.entry.bytes_up = 7;
        drop(open);
        let (changed, _) = journal.since(version);
        assert_eq!(changed.iter().map(|entry| (entry.id, entry.bytes_up)).collect::<Vec<_>>(), [(1, 7)]);
        assert!(changed[0].took.is_some());
    }

    #[test]
    fn histories_of_tunnels_that_come_and_go_are_bounded() {
        let journal = Journal::default();
        let open = journal.history(&"open".into());
        for at in 0..2 * MOST_HISTORIES {
            let id: Arc<str> = at.to_string().into();
            journal.history(&id).note(Event::Opened, "pod");
        }
        assert!(journal.past("0").is_none());
        assert!(Arc::ptr_eq(&open, &journal.past("open").expect("an open tunnel keeps its history")));
        let last = journal.past(&(2 * MOST_HISTORIES - 1).to_string()).expect("the last is kept");
        assert_eq!(last.events().len(), 1);
        assert_eq!(journal.histories.lock().unwrap().len(), MOST_HISTORIES);
    }

    #[test]
    fn heads_of_requests_are_bounded() {
        let journal = Journal::default();
        let request = http::Request::builder().uri("/").header("x", "y".repeat(15_000));
        let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
        for _ in 0..MOST_ENTRIES {
            let exchange = Some(Arc::new(exchange::Exchange::of(&request, false)).into());
            journal.add(Entry { exchange, ..ended("/") });
        }
        let (entries, _) = journal.since(0);
        let size = |entry: &Entry| entry.exchange.as_ref().map_or(0, |exchange| exchange.size());
        let kept: usize = entries.iter().map(size).sum();
        assert!(kept <= MOST_OF_HEADS && kept > MOST_OF_HEADS - 16_000, "{kept}");
        assert!(entries[0].exchange.is_some() && entries.last().unwrap().exchange.is_none(), "the newest are kept");
        assert_eq!(journal.entries.lock().unwrap().heads, kept);
    }

    #[test]
    fn the_heads_of_an_answer_that_comes_late_are_counted() {
        let journal = Arc::new(Journal::default());
        let request = http::Request::new(http_body_util::Empty::<bytes::Bytes>::new());
        let exchange = Arc::new(exchange::Exchange::of(&request, false));
        let mut slow = journal.begin(Entry { exchange: Some(exchange.clone().into()), ..Entry::new(Kind::Http) });
        let headers = [(http::header::SERVER, "x".repeat(10_000).parse().unwrap())].into_iter().collect();
        assert!(exchange.response.set(exchange::Head::of(&headers)).is_ok());
        slow.change(|entry| entry.status = Some(200));
        assert!(journal.entries.lock().unwrap().heads > 10_000);
        drop(slow);
        (0..MOST_ENTRIES).for_each(|_| journal.add(ended("/")));
        assert_eq!(journal.entries.lock().unwrap().heads, 0);
    }

    #[test]
    fn a_full_journal_fits_its_memory() {
        let long = "x".repeat(100_000);
        let entry = Entry::new(Kind::Http).with_host(&long).with_path(&long).with_error(&long);
        let size = size_of::<Entry>() + entry.host.len() + entry.path.len() + entry.error.as_ref().unwrap().len();
        assert!(size <= 1400, "{size}");
        let history = History::default();
        (0..100).for_each(|_| history.note(Event::Failed, &long));
        let events: usize = history.events().iter().map(|event| size_of::<Happened>() + event.text.len()).sum();
        assert!(size * MOST_ENTRIES + events * MOST_HISTORIES < 3 * 1024 * 1024, "{size} {events}");
    }
}
