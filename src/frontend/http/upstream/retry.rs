//! Policy of retries.

use std::time::Duration;

use h2::Reason;

/// The pauses between attempts on new connections; a pod that is replaced takes about a second to say so.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
];

/// How often a request is sent again that a backend may have acted on: it may be what makes the backend fail.
const MOST_UNANSWERED: usize = 2;

/// How often a connection that was used before is tried for one request, before a new one is made.
const MOST_USED: usize = 2;

/// How far a request came that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The backend has certainly not seen it.
    NotSent,
    /// The connection ended without a byte of an answer: the backend may have acted on it.
    Unanswered,
    /// The backend answered, with something that is no response, or with the end of this stream alone.
    Answered,
}

impl Outcome {
    /// Returns how far a request came whose connection to an HTTP/2 backend or whose stream ended with `error`.
    ///
    /// RFC 9113, section 8.7: REFUSED_STREAM, and a GOAWAY for a stream above its last one, say that nothing was done.
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
    /// It is there to be sent again: its body is kept, or came back unread.
    pub is_kept: bool,
    /// Its method is idempotent (RFC 9110, section 9.2.2).
    pub is_idempotent: bool,
    /// The connection had served others before.
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
    /// Returns whether the next attempt may be on a connection that was used before.
    pub fn may_use_again(&self) -> bool {
        self.used < MOST_USED
    }

    /// Returns how long to wait before the next attempt. None: it is not repeated.
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
        // Outcome, kept, idempotent, on a used connection: the pause before it is sent again.
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
