//! `adit unlock`: lifts the rules of a context for a while.

use std::time::Duration;

use super::{
    Globals,
    report::{CliError, print},
    status,
};
use crate::{
    admin::{
        api::unlock::{UnlockAnswer, UnlockRequest},
        socket,
    },
    config::names::parse_duration,
    guard::locks::LONGEST,
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  adit unlock prod\n  adit unlock prod --for 1h\n  adit unlock prod --for 0                 lock it again\n\n\
        A context with 'methods' refuses all others. adit locks it again after this time, and when it\n\
        exits. It then closes the WebSockets, SOCKS5, CONNECT, TLS and PostgreSQL connections that were\n\
        opened meanwhile."
)]
pub struct Args {
    /// Context, or its alias
    #[arg(id = "locked", value_name = "CONTEXT")]
    context: String,
    /// Duration, at most 8h; 0 locks it again
    #[arg(long = "for", value_name = "DURATION", default_value = "15m", value_parser = duration)]
    time: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text).filter(|time| *time <= LONGEST);
    time.ok_or_else(|| "write a duration of at most 8h: 15m, 1h30m".to_owned())
}

pub async fn run(globals: &Globals, args: Args) -> Result<(), CliError> {
    let (path, _) = status::find_one(globals).await?;
    let wanted = UnlockRequest { seconds: args.time.as_secs() };
    let at = format!("contexts/{}/unlock", socket::escape(&args.context));
    let UnlockAnswer { context, seconds, .. } = socket::ask_with(&path, &at, &wanted).await?;
    print(&match seconds {
        0 => format!("context {context} is locked\n"),
        seconds if seconds < 60 => format!("context {context} allows every method for {seconds} s\n"),
        seconds => format!("context {context} allows every method for {} min\n", seconds.div_ceil(60)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_time_is_longer_than_the_longest() {
        assert_eq!(duration("8h"), Ok(LONGEST));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        for wrong in ["8h1s", "24h", "x"] {
            assert!(duration(wrong).unwrap_err().contains("at most 8h"), "{wrong}");
        }
    }
}
