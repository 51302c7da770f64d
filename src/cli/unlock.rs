//! `adit unlock`: lift the rules of a context for a while.

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
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Contexts with 'methods' in the configuration take no others. A context is locked again by time, and when adit ends."
)]
pub struct Args {
    /// Context, or its alias
    #[arg(id = "locked", value_name = "CONTEXT")]
    context: String,
    /// For how long, at most 8h; 0 locks it again
    #[arg(long = "for", value_name = "DURATION", default_value = "15m", value_parser = duration)]
    time: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a duration: 15m, 1h30m".to_owned())
}

pub async fn run(globals: &Globals, args: Args) -> Result<(), CliError> {
    let (path, _) = status::find_one(globals).await?;
    let wanted = UnlockRequest { seconds: args.time.as_secs() };
    let at = format!("contexts/{}/unlock", socket::escape(&args.context));
    let UnlockAnswer { context, seconds, .. } = socket::ask_with(&path, &at, &wanted).await?;
    print(&match seconds {
        0 => format!("context {context} is locked\n"),
        seconds if seconds < 60 => format!("context {context} takes every method for {seconds} s\n"),
        seconds => format!("context {context} takes every method for {} min\n", seconds.div_ceil(60)),
    })
}
