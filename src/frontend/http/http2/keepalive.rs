//! Detects by PING that the client of an HTTP/2 connection is gone (RFC 9113, section 6.7).

use std::{
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard},
};

use h2::{Ping, PingPong};
use tokio::time::{Instant, sleep_until};

use crate::io::accept::Limits;

/// Times of the last activity on a connection. Clones share them.
#[derive(Clone)]
pub struct Activity(Arc<Mutex<Times>>);

#[derive(Clone, Copy)]
struct Times {
    read: Instant,
    written: Instant,
    answer: Option<Instant>,
}

impl Activity {
    pub fn new() -> Self {
        let now = Instant::now();
        Self(Arc::new(Mutex::new(Times { read: now, written: now, answer: None })))
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.0.lock().expect("no panic while the lock is held")
    }

    pub fn note_read(&self) {
        self.times().read = Instant::now();
    }

    pub fn note_written(&self) {
        self.times().written = Instant::now();
    }

    pub fn note_answer(&self) {
        self.times().answer = Some(Instant::now());
    }

    /// Returns when headers or data of an answer were last sent. `None`: there was no answer.
    pub fn last_answer(&self) -> Option<Instant> {
        self.times().answer
    }

    fn last_read(&self) -> Instant {
        self.times().read
    }

    fn last_byte(&self) -> Instant {
        let times = *self.times();
        times.read.max(times.written)
    }
}

/// Sends a PING whenever the client is silent, and returns when the client is gone: no byte in either direction for as long as a
/// PING's answer may take. An answer that drains over a slow link is progress: the PING waits behind it.
///
/// `pings`: of a connection that another future polls.
pub async fn until_gone(mut pings: PingPong, activity: Activity, limits: &Limits) {
    loop {
        let read = activity.last_read();
        sleep_until(read + limits.ping).await;
        if activity.last_read() != read {
            continue;
        }
        if pings.send_ping(Ping::opaque()).is_err() {
            // The connection has ended, which its own future reports.
            return std::future::pending().await;
        }
        let asked = Instant::now();
        loop {
            let until = activity.last_byte().max(asked) + limits.ping_answer();
            tokio::select! {
                pong = poll_fn(|cx| pings.poll_pong(cx)) => match pong {
                    Ok(_) => break,
                    Err(_) => return std::future::pending().await,
                },
                () = sleep_until(until) => {
                    if activity.last_byte().max(asked) + limits.ping_answer() <= Instant::now() {
                        return;
                    }
                }
            }
        }
    }
}
