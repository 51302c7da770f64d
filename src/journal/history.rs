//! The events of one tunnel, and the results of its requests. It outlives the tunnel, to explain why the tunnel closed.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use super::{
    entry::start,
    percentiles::{Histogram, Percentiles},
};

/// Maximum number of events.
const MOST_EVENTS: usize = 20;

/// Maximum bytes of an event's text.
const LONGEST_TEXT: usize = 200;

/// Number of minutes in [`History::recent`].
const RECENT_MINUTES: usize = 5;

/// Number of seconds with a counter of their own, including the current one.
const RECENT_SECONDS: usize = 301;

/// Maximum number of known pods. At the limit, all are forgotten.
const MOST_PODS: usize = 64;

/// Event of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A session opened.
    Opened,
    /// A session could not be opened.
    Failed,
    /// The session ended unexpectedly.
    Lost,
    /// The first stream to this pod.
    NewPod,
    /// A stream moved to another pod, because its pod could not serve it.
    Retried,
    /// The tunnel closed after its idle timeout.
    Idle,
    /// The tunnel was closed by a person, by a reload, or at the end of the process.
    Stopped,
    /// A person requested a new session.
    Reconnect,
}

impl Event {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Failed => "failed",
            Self::Lost => "lost",
            Self::NewPod => "new-pod",
            Self::Retried => "retried",
            Self::Idle => "idle",
            Self::Stopped => "stopped",
            Self::Reconnect => "reconnect",
        }
    }
}

/// An event with its time.
#[derive(Clone, Debug, PartialEq)]
pub struct Happened {
    pub at: SystemTime,
    pub event: Event,
    /// The pod, or the reason.
    pub text: Box<str>,
}

/// The history of one tunnel.
#[derive(Default)]
pub struct History {
    inner: Mutex<Inner>,
    clock: Clock,
}

/// Seconds since its creation, by a monotonic clock.
struct Clock(Instant);

impl Default for Clock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock {
    fn second(&self) -> u64 {
        self.0.elapsed().as_secs()
    }

    fn minute(&self) -> u64 {
        self.second() / 60
    }
}

#[derive(Default)]
struct Inner {
    events: VecDeque<Happened>,
    pods: HashSet<Arc<str>>,
    first_byte: Histogram,
    requests: u64,
    errors: u64,
    /// Ring of minutes: minute of the clock, requests, errors.
    minutes: [(u64, u64, u64); RECENT_MINUTES],
    /// Ring of requests per second; the last second is `second`. Empty until the first request.
    seconds: Vec<u32>,
    second: u64,
    last: Option<SystemTime>,
}

impl Inner {
    /// Returns the index of a second in the ring, and clears the seconds that have passed since the last one.
    fn second(&mut self, now: u64) -> usize {
        self.seconds.resize(RECENT_SECONDS, 0);
        let place = |second: u64| (second % RECENT_SECONDS as u64) as usize;
        for passed in self.second.max(now.saturating_sub(RECENT_SECONDS as u64)) + 1..=now {
            self.seconds[place(passed)] = 0;
        }
        // The clock is read before the lock is taken, so a later second may come first.
        self.second = self.second.max(now);
        place(self.second)
    }
}

impl History {
    /// Records an event. A repetition only updates the time of the last event.
    pub fn note(&self, event: Event, text: &str) {
        let mut inner = self.inner.lock().expect("no panic while the lock is held");
        let happened = Happened { at: SystemTime::now(), event, text: start(text, LONGEST_TEXT).into() };
        inner.last = Some(happened.at);
        if let Some(last) = inner.events.back_mut().filter(|last| (last.event, &last.text) == (event, &happened.text)) {
            last.at = happened.at;
            return;
        }
        if inner.events.len() >= MOST_EVENTS {
            inner.events.pop_front();
        }
        inner.events.push_back(happened);
    }

    /// Records that a session opened, with its first pod.
    pub fn opened(&self, pod: &str, text: &str) {
        let mut inner = self.inner.lock().expect("no panic while the lock is held");
        inner.pods = HashSet::from([Arc::from(pod)]);
        drop(inner);
        self.note(Event::Opened, text);
    }

    /// Records that a stream goes to this pod.
    pub fn placed(&self, pod: &str) {
        let mut inner = self.inner.lock().expect("no panic while the lock is held");
        if inner.pods.contains(pod) {
            return;
        }
        if inner.pods.len() >= MOST_PODS {
            inner.pods.clear();
        }
        inner.pods.insert(pod.into());
        drop(inner);
        self.note(Event::NewPod, pod);
    }

    /// Counts a request or connection that has ended.
    pub fn count(&self, first_byte: Option<Duration>, is_error: bool) {
        let mut inner = self.inner.lock().expect("no panic while the lock is held");
        inner.requests += 1;
        inner.errors += u64::from(is_error);
        let second = inner.second(self.clock.second());
        inner.seconds[second] += 1;
        let minute = self.clock.minute();
        let slot = &mut inner.minutes[(minute % RECENT_MINUTES as u64) as usize];
        if slot.0 != minute {
            *slot = (minute, 0, 0);
        }
        slot.1 += 1;
        slot.2 += u64::from(is_error);
        if let Some(took) = first_byte {
            inner.first_byte.add(took);
        }
    }

    /// Returns the events, newest first.
    pub fn events(&self) -> Vec<Happened> {
        self.inner.lock().expect("no panic while the lock is held").events.iter().rev().cloned().collect()
    }

    /// Returns the number of requests and connections, and of those that failed.
    pub fn counts(&self) -> (u64, u64) {
        let inner = self.inner.lock().expect("no panic while the lock is held");
        (inner.requests, inner.errors)
    }

    /// Returns the same numbers for the current minute since the tunnel was created, and the four before it.
    pub fn recent(&self) -> (u64, u64) {
        let (inner, now) = (self.inner.lock().expect("no panic while the lock is held"), self.clock.minute());
        let recent = inner.minutes.iter().filter(|(minute, ..)| now.saturating_sub(*minute) < RECENT_MINUTES as u64);
        recent.fold((0, 0), |(requests, errors), (_, more, failed)| (requests + more, errors + failed))
    }

    /// Returns how many requests ended in each of the last seconds, oldest first, without the current one.
    pub fn per_second(&self) -> Vec<u32> {
        let mut inner = self.inner.lock().expect("no panic while the lock is held");
        let present = inner.second(self.clock.second());
        (1..=RECENT_SECONDS)
            .map(|after| inner.seconds[(present + after) % RECENT_SECONDS])
            .take(RECENT_SECONDS - 1)
            .collect()
    }

    /// Returns percentiles of the time to the first byte of the response.
    pub fn first_byte(&self) -> Percentiles {
        self.inner.lock().expect("no panic while the lock is held").first_byte.percentiles()
    }

    /// Returns the number of times in each bucket, by upper bound in milliseconds.
    pub fn first_byte_counts(&self) -> Vec<(f64, u64)> {
        self.inner.lock().expect("no panic while the lock is held").first_byte.counts()
    }

    /// Returns the time of the last event.
    pub fn last(&self) -> Option<SystemTime> {
        self.inner.lock().expect("no panic while the lock is held").last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recent_is_counted_for_itself() {
        let history = History::default();
        assert_eq!(history.recent(), (0, 0));
        history.count(None, false);
        history.count(None, true);
        assert_eq!((history.recent(), history.counts()), ((2, 1), (2, 1)));
        let history =
            History { clock: Clock(history.clock.0.checked_sub(Duration::from_secs(5 * 60)).unwrap()), ..history };
        assert_eq!((history.recent(), history.counts()), ((0, 0), (2, 1)));
    }

    #[test]
    fn each_second_is_counted_for_itself_and_forgotten_after_five_minutes() {
        let mut inner = Inner::default();
        let mut count = |second, requests| {
            let place = inner.second(second);
            inner.seconds[place] += requests;
            inner.seconds.iter().sum::<u32>()
        };
        assert_eq!((count(1_000, 1), count(1_001, 2), count(1_299, 4)), (1, 3, 7));
        assert_eq!((count(1_301, 8), count(1_303, 0), count(1_290, 1)), (14, 12, 13), "1,000 and 1,001 have passed");
        assert_eq!(count(5_000, 16), 16, "all have passed");
        let history = History::default();
        history.count(None, false);
        assert_eq!(history.per_second().len(), RECENT_SECONDS - 1);
    }

    #[test]
    fn the_last_events_are_kept() {
        let history = History::default();
        history.opened("web-1", "web-1 by spdy");
        history.placed("web-1");
        history.placed("web-2");
        history.placed("web-2");
        let texts: Vec<_> = history.events().into_iter().map(|event| (event.event, event.text)).collect();
        assert_eq!(texts, [(Event::NewPod, "web-2".into()), (Event::Opened, "web-1 by spdy".into())]);
        (0..50).for_each(|at| history.note(Event::Failed, &at.to_string()));
        let events = history.events();
        assert_eq!((events.len(), events[0].text.as_ref()), (MOST_EVENTS, "49"));
        (0..50).for_each(|_| history.note(Event::Failed, "again"));
        assert_eq!(history.events()[1].text.as_ref(), "49");
    }
}
