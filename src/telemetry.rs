//! Logging: format, filter, colour, the text of errors, and what programs say.

mod lines;
pub mod said;

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Registry, filter::Targets, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt};

pub use self::lines::{Line, Lines};

/// Target of access-log lines: one per request or connection, shown with `-v`.
pub const ACCESS: &str = "adit::access";

/// Target of the output of credential plugins. Commands that log nothing else show it, too.
pub const PLUGIN: &str = "adit::plugin";

/// Format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// Changes the log filter at run time, and keeps the last log lines.
#[derive(Clone)]
pub struct Verbosity {
    lines: Lines,
    /// `None`: the filter is fixed.
    handle: Option<reload::Handle<Targets, Registry>>,
}

impl Verbosity {
    /// Returns the last lines of the log.
    pub fn lines(&self) -> &Lines {
        &self.lines
    }

    /// Sets whether requests and connections are logged.
    pub fn set(&self, verbose: bool) {
        if let Some(handle) = &self.handle {
            // Fails only once the subscriber is gone, and with it the log.
            let _ = handle.reload(filter(verbose));
        }
    }

    /// Logs only warnings, errors and the output of credential plugins.
    pub fn warnings(&self) {
        if let Some(handle) = &self.handle {
            let _ = handle.reload(quiet().with_target(PLUGIN, LevelFilter::INFO));
        }
    }
}

/// Allows warnings, except those of kube: it returns the errors that it logs, and adit reports them.
fn quiet() -> Targets {
    Targets::new().with_default(LevelFilter::WARN).with_target("kube_client", LevelFilter::OFF)
}

fn filter(verbose: bool) -> Targets {
    let access = if verbose { LevelFilter::INFO } else { LevelFilter::OFF };
    quiet().with_target("adit", LevelFilter::INFO).with_target(ACCESS, access)
}

/// Returns whether to use colour: on a terminal that supports it, without NO_COLOR.
pub fn colours(stream: &impl IsTerminal) -> bool {
    let is_dumb = std::env::var_os("TERM").is_some_and(|name| name == "dumb");
    stream.is_terminal() && !is_dumb && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Starts to log to stderr. `RUST_LOG` (`debug`, or `warn,adit::backend=trace`) replaces the filter. There is no colour
/// without a terminal or with `NO_COLOR`.
pub fn init(format: Format, verbose: bool) -> Verbosity {
    // An invalid filter must not prevent the start.
    let from_env: Option<Targets> = std::env::var("RUST_LOG").ok().and_then(|directives| directives.parse().ok());
    let is_fixed = from_env.is_some();
    let (filter, handle) = reload::Layer::new(from_env.unwrap_or_else(|| filter(verbose)));
    let colour = colours(&std::io::stderr());
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(colour);
    let kept = Lines::default();
    let registry = tracing_subscriber::registry().with(filter).with(kept.clone());
    // A second initialisation in one process (tests) keeps the first one.
    let _ = match format {
        Format::Text => registry.with(lines.with_target(false)).try_init(),
        Format::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    Verbosity { lines: kept, handle: (!is_fixed).then_some(handle) }
}

/// Shows the output of credential plugins, for commands that log nothing else: a person may have to act on it.
/// `RUST_LOG` shows more.
pub fn init_plugins() {
    let from_env: Option<Targets> = std::env::var("RUST_LOG").ok().and_then(|directives| directives.parse().ok());
    let filter = from_env.unwrap_or_else(|| Targets::new().with_target(PLUGIN, LevelFilter::INFO));
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false).without_time().with_level(false);
    let _ = tracing_subscriber::registry().with(filter).with(lines.with_target(false)).try_init();
}

/// Starts to log to stderr for a command that prints its own results: only the output of credential plugins, until
/// [`Verbosity::warnings`]. `verbose`: everything, as [`init`] does.
pub fn init_command(format: Format, verbose: bool) -> Verbosity {
    let verbosity = init(format, verbose);
    if let Some(handle) = verbosity.handle.as_ref().filter(|_| !verbose) {
        let _ = handle.reload(Targets::new().with_target(PLUGIN, LevelFilter::INFO));
        return verbosity;
    }
    Verbosity { handle: None, ..verbosity }
}

/// Returns the text of an error with those of its sources.
pub fn reasons(error: &(dyn std::error::Error + 'static)) -> String {
    let mut reasons = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        // Outer errors often repeat the text of inner ones.
        let text = inner.to_string();
        if !reasons.contains(&text) {
            reasons = format!("{reasons}: {text}");
        }
        source = inner.source();
    }
    reasons
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn requests_are_logged_where_that_is_asked_for() {
        assert!(filter(true).would_enable(ACCESS, &Level::INFO));
        assert!(!filter(false).would_enable(ACCESS, &Level::WARN));
        assert!(filter(false).would_enable("adit::tunnel::task", &Level::INFO));
        assert!(!filter(true).would_enable("hyper::proto", &Level::INFO));
    }
}
