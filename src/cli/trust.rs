//! `adit trust`: https without warnings.

use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};

use super::{
    Globals,
    report::{CliError, print},
};
use crate::{
    config::Config,
    trust::{
        self, Authority,
        stores::{self, Places, State, Store, java},
        variables,
    },
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a CA for local names and add it to the stores of browsers and the system
    Install {
        /// More names that the CA may vouch for, with all below them, e.g. example.com
        #[arg(long, value_name = "NAME", value_delimiter = ',')]
        names: Vec<String>,
    },
    /// Remove the CA from all stores and delete it
    Uninstall,
    /// Show the CA and which stores trust it
    Status,
    /// Print the environment variables for programs that use no store of the system
    Env {
        /// Syntax of this shell
        #[arg(short, long, value_enum, default_value = "sh")]
        output: Shell,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shell {
    Sh,
    Fish,
    Powershell,
    Json,
}

pub fn run(globals: &Globals, args: Args) -> Result<ExitCode, CliError> {
    let folder = trust::folder().ok_or_else(|| {
        CliError::usage("there is no home folder for the CA").hint(Some("set HOME, or XDG_DATA_HOME"))
    })?;
    let places = places(&folder)?;
    let known = Authority::load(&folder)
        .map_err(|error| CliError::new("the CA cannot be read").cause(Some(error)).hint(Some("adit trust uninstall")));
    match args.command {
        Command::Install { names } => install(&globals.load()?, known?, &names, &folder, &places),
        Command::Uninstall => uninstall(known.ok().flatten(), &folder, &places),
        Command::Status => status(known?, &places),
        Command::Env { output } => {
            let authority = known?.ok_or_else(|| CliError::new("there is no CA").hint(Some("adit trust install")))?;
            let variables = variables::write(&authority, &folder).map_err(no_bundle)?;
            print(&environment(&variables, output))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Returns the variables for a program that is started where the CA is installed; none without a CA.
pub fn of_programs() -> Vec<(&'static str, String)> {
    let Some(folder) = trust::folder() else { return Vec::new() };
    let Some(authority) = Authority::load(&folder).ok().flatten() else { return Vec::new() };
    let written = variables::write(&authority, &folder);
    let written = written.inspect_err(|error| {
        tracing::warn!(%error, "the CA bundle cannot be written: the command does not know the CA of 'adit trust'");
    });
    let mut all: Vec<_> = written
        .unwrap_or_default()
        .into_iter()
        .filter_map(|(name, file)| Some((name, file.into_os_string().into_string().ok()?)))
        .collect();
    let options = std::env::var(java::VARIABLE).unwrap_or_default();
    all.extend(java::options(&authority, &folder, &options).map(|options| (java::VARIABLE, options)));
    all
}

fn no_bundle(error: std::io::Error) -> CliError {
    CliError::new("the CA bundle cannot be written").cause(Some(error))
}

/// Returns the names for which https shows a warning though there is a CA.
pub fn beyond(config: &Config) -> Vec<String> {
    let authority = trust::folder().and_then(|folder| Authority::load(&folder).ok().flatten());
    let names = authority.map(|authority| configured(config).into_iter().filter(move |name| !authority.permits(name)));
    names.into_iter().flatten().collect()
}

/// Returns where the stores of this user are. `folder`: that of the authority.
pub fn places(folder: &std::path::Path) -> Result<Places, CliError> {
    let home = etcetera::home_dir().map_err(|error| CliError::new("there is no home folder").cause(Some(error)))?;
    let kept = folder.with_file_name("stores");
    Ok(Places { home, root: "/".into(), kept, ours: folder.to_owned(), java: java::home() })
}

/// Returns the names of the configuration that https is for: the suffix of dynamic names, and the hosts of routes.
pub fn configured(config: &Config) -> Vec<String> {
    let routes = config.http.routes.keys().map(|host| host.trim_start_matches("*.").to_owned());
    let is_name = |name: &String| name.parse::<std::net::IpAddr>().is_err();
    std::iter::once(config.http.dynamic_host.clone()).chain(routes).filter(is_name).collect()
}

fn install(
    config: &Config,
    known: Option<Authority>,
    names: &[String],
    folder: &std::path::Path,
    places: &Places,
) -> Result<ExitCode, CliError> {
    let mut wanted = configured(config);
    for name in names {
        let name = name.trim_start_matches("*.").to_ascii_lowercase();
        if !crate::config::names::is_host(&name) || !name.contains('.') {
            return Err(CliError::usage(format!("--names: {name:?} is not a host name with a dot"))
                .hint(Some("write --names example.com")));
        }
        wanted.push(name);
    }
    wanted.extend(known.iter().flat_map(|known| known.names().iter().cloned()));
    let stores = stores::all(places);
    let authority = match known {
        Some(known) if known.serves(&wanted) => known,
        known => {
            if let Some(old) = known {
                print(&format!("the CA {} is replaced\n", shown(&old)))?;
                for store in &stores {
                    print(&line(store.as_ref(), &store.remove(&old), false))?;
                }
            }
            Authority::create(folder, &owner(), &wanted).map_err(|error| {
                CliError::new(format!("the CA cannot be written to {}", folder.display())).cause(Some(error))
            })?
        }
    };
    print(&format!("CA        {}\nnames     {}\n", shown(&authority), authority.names().join(", ")))?;
    variables::renew(&authority, folder).and_then(|()| variables::write(&authority, folder)).map_err(no_bundle)?;
    let mut has_failed = false;
    for store in &stores {
        let state = store.add(&authority);
        has_failed |= matches!(state, State::Failed(_));
        print(&line(store.as_ref(), &state, true))?;
    }
    print("programs  adit trust env prints the variables for Node, Python, Ruby and curl\n")?;
    Ok(if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn uninstall(known: Option<Authority>, folder: &std::path::Path, places: &Places) -> Result<ExitCode, CliError> {
    let Some(authority) = known else {
        // A folder that adit cannot read is useless.
        let _ = std::fs::remove_dir_all(folder);
        print("there is no CA\n")?;
        return Ok(ExitCode::SUCCESS);
    };
    print(&format!("CA        {}\n", shown(&authority)))?;
    let mut is_left = false;
    for store in stores::all(places) {
        let state = store.remove(&authority);
        is_left |= !matches!(state, State::Lacks | State::NeedsProgram(_));
        print(&line(store.as_ref(), &state, false))?;
    }
    if is_left {
        print("the CA stays until no store trusts it: run 'adit trust uninstall' again then\n")?;
        return Ok(ExitCode::FAILURE);
    }
    authority.remove().map_err(|error| CliError::new("the CA cannot be deleted").cause(Some(error)))?;
    print("deleted   the CA and its key\n")?;
    Ok(ExitCode::SUCCESS)
}

fn status(known: Option<Authority>, places: &Places) -> Result<ExitCode, CliError> {
    let Some(authority) = known else {
        print("there is no CA: https to adit shows a warning. 'adit trust install' creates one\n")?;
        return Ok(ExitCode::SUCCESS);
    };
    let valid =
        authority.days_left().map_or("expired: adit trust install".to_owned(), |days| format!("{days} days left"));
    print(&format!(
        "CA        {}\nnames     {}\nvalid     {valid}\n",
        shown(&authority),
        authority.names().join(", ")
    ))?;
    for store in stores::all(places) {
        print(&line(store.as_ref(), &store.look(&authority), true))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(authority: &Authority) -> String {
    format!("{}, sha256:{}", authority.name(), authority.fingerprint())
}

/// `is_wanted`: the store is to trust the CA.
fn line(store: &dyn Store, state: &State, is_wanted: bool) -> String {
    let (word, detail) = match state {
        State::Trusts if is_wanted => ("trusts", String::new()),
        State::Trusts => ("still", ": it still trusts the CA".to_owned()),
        State::Lacks if is_wanted => ("lacks", ": adit trust install".to_owned()),
        State::Lacks => ("clean", String::new()),
        State::NeedsRoot(command) => ("root", format!(": {command}")),
        State::NeedsProgram(what) => ("skipped", format!(": {what}")),
        State::Failed(why) => ("failed", format!(": {}", why.replace('\n', " "))),
    };
    format!("{word:<9} {}{detail}\n", store.name())
}

fn owner() -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "user".to_owned());
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    format!("{user} at {host}").chars().filter(|c| is_plain(*c) || *c == ' ').collect()
}

fn environment(variables: &[(&'static str, std::path::PathBuf)], output: Shell) -> String {
    let quoted = |path: &std::path::Path| path.display().to_string();
    if output == Shell::Json {
        let map: serde_json::Map<_, _> =
            variables.iter().map(|(name, path)| ((*name).to_owned(), quoted(path).into())).collect();
        return format!("{:#}\n", serde_json::Value::Object(map));
    }
    let line = |(name, path): &(&'static str, std::path::PathBuf)| match output {
        Shell::Sh => format!("export {name}='{}'\n", quoted(path).replace('\'', "'\\''")),
        Shell::Fish => format!("set -gx {name} '{}'\n", quoted(path).replace('\\', "\\\\").replace('\'', "\\'")),
        Shell::Powershell => format!("$Env:{name} = '{}'\n", quoted(path).replace('\'', "''")),
        Shell::Json => String::new(),
    };
    variables.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_quoted_as_each_shell_has_it() {
        let variables = [("A", std::path::PathBuf::from("/it's here"))];
        for (shell, text) in [
            (Shell::Sh, "export A='/it'\\''s here'\n"),
            (Shell::Fish, "set -gx A '/it\\'s here'\n"),
            (Shell::Powershell, "$Env:A = '/it''s here'\n"),
            (Shell::Json, "{\n  \"A\": \"/it's here\"\n}\n"),
        ] {
            assert_eq!(environment(&variables, shell), text);
        }
    }
}
