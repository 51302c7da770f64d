//! State machine of one tunnel, a pure function.
//!
//! ```text
//!            acquire                opened                   idle, stopped, retired, or lost while unused
//!   (none) ----------> Starting -------------> Running ---------------------------------------> Over
//!                       ^   |                    |                                               ^
//!                       |   | failed for good    | lost while used                               |
//!      retry_at passed  |   v                    v                                               |
//!      and acquired     +- Failed <---------- Starting ------- stopped, or nobody waits ---------+
//!                            |                                                                   |
//!                            +---------------- retry_at passed, nobody acquired -----------------+
//! ```
//!
//! A tunnel in Over is forgotten; the next acquire creates another one.

use std::time::Duration;

use tokio::time::Instant;

use crate::backend::{Blame, OpenError};

/// How long callers get the stored error without another attempt.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The same if the requested name does not exist: a browser's reloads need not query the API server each time.
const RETRY_AFTER_ASKED: Duration = Duration::from_secs(5);

/// Pause between attempts while callers wait for a pod to become ready.
const PAUSE: Duration = Duration::from_millis(250);

/// State of a tunnel.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// A session is being opened, since this moment.
    Starting {
        since: Instant,
    },
    Running,
    /// Opening a session has failed, and there is no new attempt before `retry_at`.
    Failed {
        error: OpenError,
        retry_at: Instant,
    },
    Over,
}

/// Event of a tunnel.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A caller wants to use the tunnel.
    Acquired,
    Opened,
    OpenFailed(OpenError),
    /// The session takes no new streams. `used`: a lease is held.
    Lost {
        used: bool,
    },
    /// Idle for the idle timeout, or no caller waits for the start any more.
    Unused,
    /// The user asks for another session.
    Reconnect,
    /// Stopped by hand, by a reload, or by the end of the process.
    Stopped,
}

/// Next step of the tunnel's task.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Wait for the next event.
    Wait,
    /// Open a session, after a pause.
    Open { after: Duration },
    /// Close the session, if there is one, and forget the tunnel.
    Close,
}

impl State {
    /// Returns the state after `event`, and the next step.
    pub fn on(self, event: Event, now: Instant) -> (Self, Action) {
        match (self, event) {
            (Self::Over, _) => (Self::Over, Action::Close),
            (_, Event::Stopped) => (Self::Over, Action::Close),

            (Self::Starting { .. }, Event::Opened) => (Self::Running, Action::Wait),
            (Self::Starting { since }, Event::OpenFailed(error)) => {
                let left_alone = error.retry_after().unwrap_or_default();
                let pause = PAUSE.max(left_alone);
                match now.duration_since(since) + pause.saturating_sub(PAUSE) < error.patience() {
                    true => (Self::Starting { since }, Action::Open { after: pause }),
                    false => {
                        let own = if error.blame() == Blame::Asked { RETRY_AFTER_ASKED } else { RETRY_AFTER };
                        (Self::Failed { error, retry_at: now + own.max(left_alone) }, Action::Wait)
                    }
                }
            }
            (Self::Starting { .. }, Event::Unused) => (Self::Over, Action::Close),
            (state @ Self::Starting { .. }, Event::Acquired | Event::Lost { .. } | Event::Reconnect) => {
                (state, Action::Wait)
            }

            (Self::Running, Event::Lost { used: true }) | (Self::Running | Self::Failed { .. }, Event::Reconnect) => {
                (Self::Starting { since: now }, Action::Open { after: Duration::ZERO })
            }
            (Self::Running, Event::Lost { used: false } | Event::Unused) => (Self::Over, Action::Close),
            (Self::Running, Event::Acquired | Event::Opened | Event::OpenFailed(_)) => (Self::Running, Action::Wait),

            (Self::Failed { retry_at, .. }, Event::Acquired) if now >= retry_at => {
                (Self::Starting { since: now }, Action::Open { after: Duration::ZERO })
            }
            (Self::Failed { retry_at, .. }, Event::Unused) if now >= retry_at => (Self::Over, Action::Close),
            (state @ Self::Failed { .. }, _) => (state, Action::Wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::ClusterError;

    fn not_ready() -> OpenError {
        ClusterError::NotReady {
            what: "service a/b".into(),
            context: "c".parse().unwrap(),
            cause: String::new(),
            hint: String::new(),
        }
        .into()
    }

    fn not_found() -> OpenError {
        ClusterError::NotFound { what: "service a/b".into(), context: "c".parse().unwrap(), near: vec![], hint: None }
            .into()
    }

    fn away(seconds: Option<u64>) -> OpenError {
        let retry_after = seconds.map(Duration::from_secs);
        ClusterError::Unavailable {
            context: "c".parse().unwrap(),
            reason: "429".into(),
            retry_after,
            hint: String::new(),
        }
        .into()
    }

    #[test]
    fn a_cluster_that_asks_to_be_left_alone_is() {
        let now = Instant::now();
        let starting = State::Starting { since: now };
        for (seconds, wanted) in [(None, PAUSE), (Some(0), PAUSE), (Some(3), Duration::from_secs(3))] {
            let (state, action) = starting.clone().on(Event::OpenFailed(away(seconds)), now);
            assert_eq!((state, action), (starting.clone(), Action::Open { after: wanted }));
        }
        // Longer than any caller waits.
        let (state, action) = starting.on(Event::OpenFailed(away(Some(30))), now);
        let failed = State::Failed { error: away(Some(30)), retry_at: now + Duration::from_secs(30) };
        assert_eq!((state, action), (failed, Action::Wait));
    }

    #[test]
    fn every_state_answers_every_event_as_the_diagram_says() {
        let start = Instant::now();
        let now = start + Duration::from_secs(20);
        let starting = State::Starting { since: now };
        let late = State::Starting { since: start };
        let failed = |retry_at| State::Failed { error: not_ready(), retry_at };
        let (open, pause) = (Action::Open { after: Duration::ZERO }, Action::Open { after: PAUSE });
        let lost = |used| Event::Lost { used };
        let table = [
            (starting.clone(), Event::Acquired, starting.clone(), Action::Wait),
            (starting.clone(), Event::Opened, State::Running, Action::Wait),
            (starting.clone(), Event::OpenFailed(not_ready()), starting.clone(), pause),
            (late.clone(), Event::OpenFailed(not_ready()), failed(now + RETRY_AFTER), Action::Wait),
            (
                starting.clone(),
                Event::OpenFailed(not_found()),
                State::Failed { error: not_found(), retry_at: now + RETRY_AFTER_ASKED },
                Action::Wait,
            ),
            (starting.clone(), lost(true), starting.clone(), Action::Wait),
            (starting.clone(), Event::Unused, State::Over, Action::Close),
            (starting.clone(), Event::Reconnect, starting.clone(), Action::Wait),
            (starting.clone(), Event::Stopped, State::Over, Action::Close),
            (State::Running, Event::Acquired, State::Running, Action::Wait),
            (State::Running, Event::Opened, State::Running, Action::Wait),
            (State::Running, Event::OpenFailed(not_ready()), State::Running, Action::Wait),
            (State::Running, lost(true), State::Starting { since: now }, open.clone()),
            (State::Running, lost(false), State::Over, Action::Close),
            (State::Running, Event::Reconnect, starting.clone(), open.clone()),
            (failed(now + PAUSE), Event::Reconnect, starting.clone(), open.clone()),
            (State::Running, Event::Unused, State::Over, Action::Close),
            (State::Running, Event::Stopped, State::Over, Action::Close),
            (failed(now + PAUSE), Event::Acquired, failed(now + PAUSE), Action::Wait),
            (failed(now), Event::Acquired, State::Starting { since: now }, open),
            (failed(now + PAUSE), Event::Unused, failed(now + PAUSE), Action::Wait),
            (failed(now), Event::Unused, State::Over, Action::Close),
            (State::Over, Event::Reconnect, State::Over, Action::Close),
            (failed(now), Event::Stopped, State::Over, Action::Close),
            (State::Over, Event::Acquired, State::Over, Action::Close),
            (State::Over, Event::Opened, State::Over, Action::Close),
        ];
        for (state, event, next, action) in table {
            assert_eq!(state.clone().on(event.clone(), now), (next, action), "{state:?} on {event:?}");
        }
    }
}
