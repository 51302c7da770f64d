//! Retry policy.

use std::time::Duration;

use h2::Reason;

/// Back-off between attempts on new connections. A pod that is being replaced takes about a second to say so.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
];

/// Maximum number of retries of a request that a backend may have processed: the request itself may make the backend fail.
const MOST_UNANSWERED: usize = 2;

/// Maximum number of attempts on reused connections before a new one is opened.
const MOST_USED: usize = 2;

/// How far a failed request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The backend certainly did not process it.
    NotSent,
    /// The connection ended before a byte of an answer: the backend may have processed the request.
    Unanswered,
    /// The backend answered, with an invalid response or with a reset of this stream alone.
    Answered,
}

impl Outcome {
    /// Returns how far a request came whose HTTP/2 stream or connection ended with `error`.
    ///
    /// REFUSED_STREAM, and a GOAWAY for a stream above its last one, prove that nothing was processed (RFC 9113, section 8.7).
    pub fn of_http2(error: &h2::Error) -> Self {
        match error.reason() {
            Some(Reason::REFUSED_STREAM) if error.is_reset() && error.is_remote() => Self::NotSent,
            Some(Reason::NO_ERROR) if error.is_go_away() && error.is_remote() => Self::NotSent,
            Some(_) => Self::Answered,
            None => Self::Unanswered,
        }
    }
}

/// A failed attempt.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    pub outcome: Outcome,
    /// It can be sent again: its body is kept, or came back unread.
    pub is_kept: bool,
    /// Its method is idempotent (RFC 9110, section 9.2.2).
    pub is_idempotent: bool,
    /// The connection had served other requests before.
    pub was_used: bool,
}

/// The attempts of one request.
#[derive(Debug, Default)]
pub struct Attempts {
    paused: usize,
    used: usize,
    unanswered: usize,
}

impl Attempts {
    /// Returns whether the next attempt may reuse a connection.
    pub fn may_use_again(&self) -> bool {
        self.used < MOST_USED
    }

    /// Makes the next attempt open a new connection.
    pub fn use_none_again(&mut self) {
        self.used = MOST_USED;
    }

    /// Returns the back-off before the next attempt. `None`: no retry.
    pub fn again(&mut self, failed: Attempt) -> Option<Duration> {
        let may_repeat = match failed.outcome {
            Outcome::NotSent => failed.is_kept,
            Outcome::Unanswered => failed.is_kept && failed.is_idempotent,
            Outcome::Answered => false,
        };
        if !may_repeat {
            return None;
        }
        if failed.was_used {
            self.used += 1;
            return Some(Duration::ZERO);
        }
        self.unanswered += usize::from(failed.outcome == Outcome::Unanswered);
        let pause = PAUSES.get(self.paused).copied().filter(|_| self.unanswered <= MOST_UNANSWERED);
        self.paused += 1;
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_request_without_an_answer_is_sent_again() {
        use Outcome::{Answered, NotSent, Unanswered};
        let at_once = Some(Duration::ZERO);
        let paused = Some(PAUSES[0]);
        // Outcome, kept, idempotent, on a reused connection; then the back-off.
        for (outcome, is_kept, is_idempotent, was_used, pause) in [
            (NotSent, true, true, true, at_once),
            (NotSent, true, true, false, paused),
            (NotSent, true, false, true, at_once),
            (NotSent, true, false, false, paused),
            (NotSent, false, true, true, None),
            (NotSent, false, false, false, None),
            (Unanswered, true, true, true, at_once),
            (Unanswered, true, true, false, paused),
            (Unanswered, true, false, true, None),
            (Unanswered, true, false, false, None),
            (Unanswered, false, true, true, None),
            (Unanswered, false, false, false, None),
            (Answered, true, true, true, None),
            (Answered, true, true, false, None),
            (Answered, true, false, true, None),
            (Answered, false, false, false, None),
        ] {
            let failed = Attempt { outcome, is_kept, is_idempotent, was_used };
            assert_eq!(Attempts::default().again(failed), pause, "{failed:?}");
        }
    }

    #[test]
    fn attempts_end() {
        for (outcome, most) in [(Outcome::NotSent, PAUSES.len()), (Outcome::Unanswered, MOST_UNANSWERED)] {
            let failed = |was_used| Attempt { outcome, is_kept: true, is_idempotent: true, was_used };
            let mut attempts = Attempts::default();
            for _ in 0..MOST_USED {
                assert!(attempts.may_use_again());
                assert_eq!(attempts.again(failed(true)), Some(Duration::ZERO));
            }
            assert!(!attempts.may_use_again());
            for pause in PAUSES.into_iter().take(most) {
                assert_eq!(attempts.again(failed(false)), Some(pause));
            }
            assert_eq!(attempts.again(failed(false)), None);
        }
    }

    #[test]
    fn what_http2_says_of_a_stream_counts() {
        assert_eq!(Outcome::of_http2(&h2::Error::from(Reason::INTERNAL_ERROR)), Outcome::Answered);
        let broken = h2::Error::from(Reason::PROTOCOL_ERROR);
        assert_eq!(Outcome::of_http2(&broken), Outcome::Answered);
    }
}
