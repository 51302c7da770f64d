//! Rate limit for log lines about events that may happen thousands of times per second.

use std::{sync::Mutex, time::Duration};

use tokio::time::Instant;

const EVERY: Duration = Duration::from_secs(1);

/// Allows one log line per second.
#[derive(Debug, Default)]
pub struct Notice(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    said: Option<Instant>,
    count: u64,
}

impl Notice {
    /// Counts one more event. Returns the number of events since the last line if the next line is due.
    pub fn due(&self) -> Option<u64> {
        let mut state = self.0.lock().expect("no panic while the lock is held");
        state.count += 1;
        if state.said.is_some_and(|at| at.elapsed() < EVERY) {
            return None;
        }
        state.said = Some(Instant::now());
        Some(std::mem::take(&mut state.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_line_a_second_says_how_many_there_were() {
        let notice = Notice::default();
        assert_eq!([notice.due(), notice.due(), notice.due()], [Some(1), None, None]);
        tokio::time::advance(EVERY).await;
        assert_eq!([notice.due(), notice.due()], [Some(3), None]);
    }
}
