//! `adit check`: validates the configuration file.

use std::io;

use super::{
    Globals,
    doctor::report::quoted,
    report::{CliError, colours, print},
};
use crate::config::validate;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  adit check\n  adit check adit.yaml\n\n\
                  It checks every key, and whether the files that the configuration names can be used.\nExit codes: 0 valid; 2 not valid")]
pub struct Args {
    /// Configuration file [default: that of --config]
    file: Option<std::path::PathBuf>,
}

pub fn run(globals: &Globals, args: Args) -> Result<(), CliError> {
    let path = args.file.or(globals.config_path().0);
    let path = path.ok_or_else(|| {
        CliError::usage("there is no home folder to look for a configuration in").hint(Some("adit check FILE"))
    })?;
    let bytes = validate::read(&path)?;
    let config = validate::check(&path, &bytes).map_err(|error| match error.whole() {
        Some(_) => error.into(),
        None => CliError::usage(format!("{} is not valid\n{}", path.display(), error.snippets(colours(&io::stderr())))),
    })?;
    let jumps = config.tcp.routes.values().filter(|route| route.destination.jump.is_some()).count();
    let parts = [
        (config.http.routes.len(), "HTTP route"),
        (config.tcp.routes.len() - jumps, "TCP route"),
        (jumps, "jump"),
        (config.sni.as_ref().map_or(0, |sni| sni.routes.len()), "SNI route"),
        (config.local.len(), "local port"),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}{}", if *count == 1 { "" } else { "s" }))
        .collect();
    let is_empty = bytes.trim_ascii().is_empty();
    let parts = match parts.is_empty() {
        true if is_empty => "it is empty, so that every setting has its default".to_owned(),
        true => "no routes".to_owned(),
        false => parts.join(", "),
    };
    let notes: String = config.notes.iter().map(|note| format!("note: {note}\n")).collect();
    // `adit trust install` takes the names from the configuration, including those that `--names` does not accept.
    let install = match globals.config_path().0.as_ref() == Some(&path) && globals.config.is_none() {
        true => "adit trust install".to_owned(),
        false => format!("adit --config {} trust install", quoted(&path.display().to_string())),
    };
    let beyond: String = super::trust::beyond(&config)
        .iter()
        .map(|name| format!("note: https for {name} needs '{install}'\n"))
        .collect();
    print(&format!("{} is valid: {parts}\n{notes}{beyond}", path.display()))
}
