//! `adit status`: prints the tunnels of the running adit.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    time::Duration,
};

use futures::future::join_all;
use tokio::time::sleep;

use super::{
    Globals, Output,
    report::{CliError, print, table},
    running,
};
use crate::admin::{
    api::answers::{Overview, SignIn, Status},
    socket,
};
use crate::tls::reason;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  adit status\n  adit status --watch\n  adit status --listen 127.0.0.1:9999 -o json"
)]
pub struct Args {
    /// Output format [default: text]
    #[arg(short, long, value_enum)]
    output: Option<Output>,
    /// Repeat each second, until Ctrl-C
    #[arg(short, long, conflicts_with = "output")]
    watch: bool,
}

const EVERY: Duration = Duration::from_secs(1);

/// Moves the cursor to the top left, and erases the screen behind it (ECMA-48: CUP, ED).
const HOME: &str = "\x1b[H\x1b[J";

pub async fn run(globals: &Globals, args: Args) -> Result<(), CliError> {
    match args.output {
        Some(Output::Json) => {
            let (_, status) = find_one(globals).await?;
            print(&format!("{}\n", serde_json::to_string_pretty(&status).map_err(io::Error::other)?))
        }
        None if args.watch => loop {
            // Search again each time: another adit may have started.
            let text = all(globals).await.unwrap_or_else(|error| format!("{error}\n"));
            let first = if io::stdout().is_terminal() { HOME } else { "" };
            print(&format!("{first}{text}"))?;
            sleep(EVERY).await;
        },
        None => once(globals).await,
    }
}

/// Prints the tunnels once.
pub async fn once(globals: &Globals) -> Result<(), CliError> {
    print(&all(globals).await?)
}

async fn all(globals: &Globals) -> Result<String, CliError> {
    let texts: Vec<String> = find(globals).await?.iter().map(|(_, status)| show(status)).collect();
    Ok(texts.join("\n"))
}

/// Returns the running adits, at least one: those with the port of `--listen` and the file of `--config`, else all that answer.
///
/// # Errors
/// No adit runs, or one does not answer.
pub async fn find(globals: &Globals) -> Result<Vec<(PathBuf, Status)>, CliError> {
    let port = globals.overrides()?.listen.and_then(|listen| listen.first().map(|address| address.port()));
    // Do not load the file: `adit status` must work even if it is invalid by now.
    let file = globals.config.as_ref().map(|file| {
        let real = file.canonicalize();
        real.map_err(|error| CliError::usage(format!("cannot read {:?}: {}", file.display(), reason(&error))))
    });
    let file = file.transpose()?;
    let is_wanted = |overview: &Overview| {
        let has_port = |port| overview.http.iter().any(|address| address.port() == port);
        let has_file = |file| overview.config.as_ref().and_then(|own| own.canonicalize().ok()).as_ref() == Some(file);
        port.is_none_or(has_port) && file.as_ref().is_none_or(has_file)
    };
    // Concurrently: a process that hangs delays no other.
    let asking = socket::sockets().into_iter().map(async |path| (socket::status(&path).await, path));
    let (mut found, mut others, mut silent) = (Vec::new(), Vec::new(), None);
    for (answer, path) in join_all(asking).await {
        match answer {
            Ok(status) if is_wanted(&status.overview) => found.push((path, status)),
            Ok(status) => others.extend(status.overview.http.first().map(ToString::to_string)),
            Err(error) if port.is_none_or(|port| path.file_stem().is_some_and(|stem| *stem == *port.to_string())) => {
                silent = silent.or(running::silent(&path, error).await);
            }
            Err(_) => {}
        }
    }
    if let Some(silent) = silent.filter(|_| found.is_empty()) {
        return Err(silent);
    }
    if found.is_empty() && !others.is_empty() {
        return Err(CliError::new("no adit is running with this --listen or --config").hint(Some(format!(
            "those that run listen on {}: try --listen {}",
            others.join(", "),
            others[0]
        ))));
    }
    if found.is_empty() {
        let folders: Vec<String> = socket::folders().iter().map(|folder| folder.display().to_string()).collect();
        return Err(CliError::new("no adit is running")
            .hint(Some(format!("start it with 'adit'; its socket would be in {}", folders.join(" or ")))));
    }
    Ok(found)
}

/// Returns the only running adit.
///
/// # Errors
/// None runs, or several do and the options select none.
pub async fn find_one(globals: &Globals) -> Result<(PathBuf, Status), CliError> {
    let mut found = find(globals).await?;
    if found.len() > 1 {
        let ports: Vec<String> =
            found.iter().filter_map(|(_, status)| Some(status.overview.http.first()?.to_string())).collect();
        return Err(CliError::new(format!("{} adits are running, on {}", found.len(), ports.join(", ")))
            .hint(Some(format!("say which: --listen {}", ports.first().map_or("ADDRESS", String::as_str)))));
    }
    Ok(found.swap_remove(0))
}

fn show(status: &Status) -> String {
    let list =
        |addresses: &[std::net::SocketAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let mut text = format!(
        "adit {} (pid {}) listens on {}",
        status.overview.version,
        status.overview.pid,
        list(&status.overview.http)
    );
    if !status.overview.tcp.is_empty() {
        text += &format!(", tcp {}", list(&status.overview.tcp));
    }
    let config =
        status.overview.config.as_ref().map_or_else(|| "defaults".to_owned(), |file| file.display().to_string());
    text += &format!("\nconfig {config}, loaded at {}\n", status.overview.loaded_at);
    if let Some(reason) = &status.overview.rejected {
        text += &format!("config not reloaded: {reason}\n");
    }
    for sign_in in &status.sign_ins {
        text += &sign_in_lines(sign_in);
    }
    for local in &status.overview.local {
        let how = match (&local.public, &local.reason) {
            (Some(public), _) => format!("reachable at {public}"),
            (None, Some(reason)) => format!("{}: {reason}", local.state),
            (None, None) => local.state.clone(),
        };
        text += &format!("{} through relay {}: {how}\n", local.entry(), local.relay);
        if let Some(hint) = &local.hint {
            text += &format!("  its service refuses the Host header of visitors; hint: {hint}\n");
        }
    }
    if status.tunnels.is_empty() {
        return text + "no tunnels: one opens with the first connection to a Service\n";
    }
    let mut rows = vec![
        ["TUNNEL", "STATE", "POD", "TRANSPORT", "STREAMS", "UP", "DOWN", "IDLE", "LAST ERROR"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for tunnel in &status.tunnels {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        rows.push(vec![
            tunnel.id.clone(),
            tunnel.state.clone(),
            or_dash(&(!tunnel.pods.is_empty()).then(|| tunnel.pods.join(", "))),
            or_dash(&tunnel.transport),
            tunnel.streams.to_string(),
            bytes(tunnel.bytes_up),
            bytes(tunnel.bytes_down),
            tunnel.idle_seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds}s")),
            or_dash(&tunnel.last_error),
        ]);
    }
    text + "\n" + &table(&rows)
}

/// Returns the lines about a sign-in: the user, and the output of the plugin.
fn sign_in_lines(sign_in: &SignIn) -> String {
    let SignIn { user, issuer, seconds, said, .. } = sign_in;
    let mut text = match &sign_in.error {
        None => format!("signing in with {issuer} for {seconds} s: {user}\n"),
        Some(error) => format!("not signed in: {user}: {error}; another attempt is possible in {seconds} s\n"),
    };
    for line in said {
        text += &format!("  {line}\n");
    }
    text
}

/// Returns a number of bytes as an amount below 1024 and the power of 1024, at most 4.
pub(super) fn scaled(bytes: u64) -> (f64, usize) {
    let (mut amount, mut unit) = (bytes as f64, 0);
    while amount >= 1024.0 && unit < 4 {
        amount /= 1024.0;
        unit += 1;
    }
    (amount, unit)
}

/// Returns a number of bytes for people: `1.5 MiB`.
fn bytes(count: u64) -> String {
    let (amount, unit) = scaled(count);
    let name = ["B", "KiB", "MiB", "GiB", "TiB"][unit];
    if unit == 0 { format!("{count} B") } else { format!("{amount:.1} {name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_readable() {
        assert_eq!([bytes(0), bytes(1023), bytes(1536), bytes(5 << 30)], ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]);
    }
}
