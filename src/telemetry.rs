//! Logging: format, filter, colour.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt};

/// The target of access-log lines: one per request or connection, shown with `-v`.
pub const ACCESS: &str = "adit::access";

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// Changes what is logged while the program runs.
#[derive(Clone)]
pub struct Verbosity {
    /// None: `RUST_LOG` decides, whatever the configuration says.
    handle: Option<reload::Handle<EnvFilter, Registry>>,
}

impl Verbosity {
    /// With `verbose`, requests and connections are logged.
    pub fn set(&self, verbose: bool) {
        if let Some(handle) = &self.handle {
            // It fails only once the subscriber is gone, and with it the log.
            let _ = handle.reload(filter(verbose));
        }
    }
}

fn filter(verbose: bool) -> EnvFilter {
    let access = if verbose { "info" } else { "off" };
    EnvFilter::builder()
        .with_default_directive(LevelFilter::WARN.into())
        .parse_lossy(format!("warn,adit=info,{ACCESS}={access}"))
}

/// Starts to log to stderr. `RUST_LOG` replaces the filter; without a terminal, or with `NO_COLOR`, there is no colour.
pub fn init(format: Format, verbose: bool) -> Verbosity {
    let from_env = std::env::var("RUST_LOG").ok().filter(|directives| !directives.is_empty());
    let is_fixed = from_env.is_some();
    let (filter, handle) = reload::Layer::new(from_env.map_or_else(|| filter(verbose), EnvFilter::new));
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(colour);
    let registry = tracing_subscriber::registry().with(filter);
    // A second initialisation in one process (tests) keeps the first.
    let _ = match format {
        Format::Text => registry.with(lines.with_target(false)).try_init(),
        Format::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    Verbosity { handle: (!is_fixed).then_some(handle) }
}
