//! The last lines of the log, kept for later requests.

use std::{
    collections::VecDeque,
    fmt::{self, Write},
    sync::{Arc, Mutex},
    time::SystemTime,
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Layer};

/// Maximum number of lines kept.
const MOST: usize = 1_000;

/// Maximum number of bytes kept of a line.
const LONGEST: usize = 500;

/// A line of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Number of the line, from 1 on in each process.
    pub id: u64,
    pub at: SystemTime,
    pub level: Level,
    /// The message, then the fields as `name=value`.
    pub text: Box<str>,
}

/// The last lines of the log. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Lines(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<Line>,
    last: u64,
}

impl Lines {
    /// Returns the lines, oldest first.
    pub fn all(&self) -> Vec<Line> {
        self.0.lock().expect("no panic while the lock is held").lines.iter().cloned().collect()
    }

    /// Returns the lines after the one with this number, oldest first, and the number of the last line.
    pub fn since(&self, id: u64) -> (Vec<Line>, u64) {
        let kept = self.0.lock().expect("no panic while the lock is held");
        (kept.lines.iter().skip_while(|line| line.id <= id).cloned().collect(), kept.last)
    }

    fn add(&self, level: Level, text: &str) {
        let mut kept = self.0.lock().expect("no panic while the lock is held");
        kept.last += 1;
        let line = Line { id: kept.last, at: SystemTime::now(), level, text: text.into() };
        if kept.lines.len() >= MOST {
            kept.lines.pop_front();
        }
        kept.lines.push_back(line);
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        self.add(*event.metadata().level(), &text.0);
    }
}

/// A line while it is written, truncated at the limit.
struct Text(String);

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = LONGEST - self.0.len();
        if text.len() <= room {
            self.0.push_str(text);
            return Ok(());
        }
        let end = (0..=room).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        self.0.push_str(&text[..end]);
        Err(fmt::Error)
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Fails only once the line is full.
        let _ = match field.name() {
            // The message comes first, in whatever order the fields come.
            "message" => {
                let fields = std::mem::take(&mut self.0);
                write!(self, "{value:?}{}{fields}", if fields.is_empty() { "" } else { " " })
            }
            name => write!(self, "{}{name}={value:?}", if self.0.is_empty() { "" } else { " " }),
        };
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn the_last_lines_are_kept_with_their_fields() {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::registry().with(lines.clone());
        tracing::subscriber::with_default(subscriber, || {
            for at in 0..MOST {
                tracing::info!(at, "line");
            }
            tracing::warn!(tunnel = %"a/b", reason = "x y", long = "ä".repeat(LONGEST), "failed");
        });
        let all = lines.all();
        assert_eq!((all.len(), all[0].text.as_ref(), all[0].id), (MOST, "line at=1", 2));
        let last = all.last().unwrap();
        assert!(last.text.starts_with("failed tunnel=a/b reason=\"x y\" long=\"ä"), "{}", last.text);
        assert!(last.text.len() <= LONGEST && last.level == Level::WARN);
    }
}
