//! `adit stop`: stops a tunnel of the running adit.

use super::{
    Globals,
    report::{CliError, print},
    status,
};
use crate::admin::socket::{self, CallError};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  adit status\n  adit stop demo/shop/web")]
pub struct Args {
    /// Tunnel as 'adit status' prints it: CONTEXT/NAMESPACE/SERVICE[:PORT]
    tunnel: String,
}

pub async fn run(globals: &Globals, args: Args) -> Result<(), CliError> {
    let (path, status) = status::find_one(globals).await?;
    match socket::post(&path, &format!("tunnels/{}/stop", socket::escape(&args.tunnel))).await {
        Ok(()) => return print(&format!("stopped {}\n", args.tunnel)),
        Err(CallError::Refused(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let tunnels: Vec<String> = status.tunnels.into_iter().map(|tunnel| tunnel.id).collect();
    let hint = if tunnels.is_empty() {
        "there are no tunnels".to_owned()
    } else {
        format!("the tunnels are {}", tunnels.join(", "))
    };
    Err(CliError::new(format!("no tunnel {}", args.tunnel)).hint(Some(hint)))
}
