//! `adit trust`: makes browsers and programs trust adit's certificates.

use std::{fs::File, path::Path, process::ExitCode};

use clap::{Subcommand, ValueEnum};

use super::{
    Globals,
    report::{CliError, print},
};
use crate::{
    config::{Config, shell},
    trust::{
        self, Authority,
        authority::Root,
        stores::{self, Places, State, Store, java},
        variables,
    },
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  adit trust install\n  adit trust install --names example.com\n  adit trust status\n  \
                        eval \"$(adit trust env)\"\n  adit trust uninstall"
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a CA for local names and add it to the stores of browsers and the system
    Install {
        /// Additional names that the CA may sign certificates for, with all names below them, e.g. example.com
        #[arg(long, value_name = "NAME", value_delimiter = ',')]
        names: Vec<String>,
    },
    /// Remove the CA from all stores and delete it
    Uninstall,
    /// Show the CA and which stores trust it
    Status,
    /// Print the environment variables for programs that do not use the system store
    Env {
        /// Syntax of this shell
        #[arg(short, long, value_enum, default_value = "sh")]
        output: Shell,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shell {
    #[value(alias = "shell")]
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
    let data = folder.parent().unwrap_or(&folder);
    let _lock = match args.command {
        Command::Install { .. } => Some(lock(data, true)?),
        Command::Uninstall if data.is_dir() => Some(lock(data, false)?),
        _ => None,
    };
    let known = Authority::load(&folder);
    let usable = |known: std::io::Result<Option<Authority>>| {
        known.map_err(|error| {
            CliError::new("the CA cannot be used").cause(Some(error)).hint(Some("adit trust install replaces it"))
        })
    };
    match args.command {
        Command::Install { names } => install(&globals.load()?, known, &names, &folder, &places),
        Command::Uninstall => uninstall(known, &folder, &places),
        Command::Status => status(usable(known)?, &folder, &places),
        Command::Env { output } => {
            let authority =
                usable(known)?.ok_or_else(|| CliError::new("there is no CA").hint(Some("adit trust install")))?;
            let variables = variables::write(&authority, &folder).map_err(no_bundle)?;
            print(&environment(&variables, output))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Takes the lock for changing the CA and its stores. Files of two CAs must not mix, and certutil is not safe for concurrent use.
fn lock(data: &Path, is_needed: bool) -> Result<File, CliError> {
    if is_needed {
        std::fs::create_dir_all(data)
            .map_err(|error| CliError::new(format!("{} cannot be created", data.display())).cause(Some(error)))?;
    }
    let locked = File::open(data).and_then(|folder| folder.lock().map(|()| folder));
    locked.map_err(|error| CliError::new(format!("{} cannot be locked", data.display())).cause(Some(error)))
}

/// Returns the variables that make programs trust the CA. Empty: there is no CA.
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

/// Returns the names of the configuration for which the installed CA cannot issue certificates.
pub fn beyond(config: &Config) -> Vec<String> {
    let authority = trust::folder().and_then(|folder| Authority::load(&folder).ok().flatten());
    let names = authority.map(|authority| configured(config).into_iter().filter(move |name| !authority.permits(name)));
    names.into_iter().flatten().collect()
}

/// Returns the places of this user's stores. `folder`: that of the CA.
///
/// # Errors
/// The user has no home folder.
pub fn places(folder: &Path) -> Result<Places, CliError> {
    let home = etcetera::home_dir().map_err(|error| CliError::new("there is no home folder").cause(Some(error)))?;
    let kept = folder.with_file_name("stores");
    Ok(Places { home, root: "/".into(), kept, ours: folder.to_owned(), java: java::home() })
}

/// Returns the names of the configuration that need certificates: the suffix of dynamic names, and the hosts of routes.
pub fn configured(config: &Config) -> Vec<String> {
    let routes = config.http.routes.keys().map(|host| host.trim_start_matches("*.").to_owned());
    let is_name = |name: &String| name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_err();
    std::iter::once(config.http.dynamic_host.clone()).chain(routes).filter(is_name).collect()
}

fn install(
    config: &Config,
    known: std::io::Result<Option<Authority>>,
    names: &[String],
    folder: &Path,
    places: &Places,
) -> Result<ExitCode, CliError> {
    let mut wanted = configured(config);
    for name in names {
        let name = name.trim_start_matches("*.").to_ascii_lowercase();
        if name.parse::<std::net::IpAddr>().is_ok() {
            return Err(CliError::usage(format!("--names: {name:?} is an address"))
                .hint(Some("the CA vouches for 127.0.0.0/8 and ::1, and for no other address: write a host name")));
        }
        if !crate::config::names::is_host(&name) || !name.contains('.') {
            return Err(CliError::usage(format!("--names: {name:?} is not a host name with a dot")).hint(Some(
                "write --names example.com; a name without a dot belongs into the configuration, as a route",
            )));
        }
        wanted.push(name);
    }
    let known = match known {
        Ok(known) => known,
        Err(error) => {
            print(&format!("replaced  the CA in {}, which cannot be used: {error}\n", folder.display()))?;
            None
        }
    };
    wanted.extend(known.iter().flat_map(|known| known.names().iter().cloned()));
    let authority = match known {
        Some(known) if known.serves(&wanted) => known,
        _ => Authority::create(folder, &owner(), &wanted).map_err(|error| {
            CliError::new(format!("the CA cannot be written to {}", folder.display())).cause(Some(error))
        })?,
    };
    let stores = stores::all(places);
    let mut has_failed = false;
    for root in Root::all(folder).iter().filter(|root| root.certificate() != authority.certificate()) {
        print(&format!("CA        replaced, sha256:{}\n", root.fingerprint()))?;
        for state in remove(root, &stores, folder)? {
            has_failed |= !matches!(state, State::Lacks | State::NeedsRoot(_));
        }
    }
    print(&format!("CA        {}\nnames     {}\n", shown(&authority), authority.names().join(", ")))?;
    variables::renew(&authority, folder).and_then(|()| variables::write(&authority, folder)).map_err(no_bundle)?;
    for store in &stores {
        let state = store.add(authority.root());
        has_failed |= matches!(state, State::Failed(_));
        print(&line(store.as_ref(), &state, true))?;
    }
    print("programs  adit trust env prints the variables for Node, Python, Ruby and curl\n")?;
    Ok(if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Removes a CA from all stores, prints a line for each, and returns their states. The CA stays recorded until all stores are
/// clean.
fn remove(root: &Root, stores: &[Box<dyn Store>], folder: &Path) -> Result<Vec<State>, CliError> {
    let mut states = Vec::new();
    for store in stores {
        let state = store.remove(root);
        print(&line(store.as_ref(), &state, false))?;
        states.push(state);
    }
    if states.iter().all(|state| *state == State::Lacks) {
        root.forget(folder)
            .map_err(|error| CliError::new("the record of a CA cannot be deleted").cause(Some(error)))?;
    }
    Ok(states)
}

fn uninstall(known: std::io::Result<Option<Authority>>, folder: &Path, places: &Places) -> Result<ExitCode, CliError> {
    let roots = Root::all(folder);
    if roots.is_empty()
        && let Err(error) = known
    {
        let unknown = "the CA's certificate cannot be read, so that no store can be searched for it";
        let by_hand = format!("delete each 'adit' of 'certutil -L -d sql:$HOME/.pki/nssdb', then {}", folder.display());
        return Err(CliError::new(unknown).cause(Some(error)).hint(Some(by_hand)));
    }
    let stores = stores::all(places);
    let mut is_left = false;
    for root in &roots {
        match &known {
            Ok(Some(authority)) if authority.root() == root => print(&format!("CA        {}\n", shown(authority)))?,
            _ => print(&format!("CA        sha256:{}\n", root.fingerprint()))?,
        }
        is_left |= remove(root, &stores, folder)?.iter().any(|state| *state != State::Lacks);
    }
    if is_left {
        print("the CA stays until no store trusts it: run 'adit trust uninstall' again then\n")?;
        return Ok(ExitCode::FAILURE);
    }
    for place in [folder, &places.kept] {
        match std::fs::remove_dir_all(place) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(CliError::new(format!("{} cannot be deleted", place.display())).cause(Some(error)));
            }
            _ => {}
        }
    }
    print(if roots.is_empty() { "there is no CA\n" } else { "deleted   the CA and its key\n" })?;
    Ok(ExitCode::SUCCESS)
}

fn status(known: Option<Authority>, folder: &Path, places: &Places) -> Result<ExitCode, CliError> {
    let stores = stores::all(places);
    let current = known.as_ref().map(Authority::certificate);
    for root in Root::all(folder).iter().filter(|root| Some(root.certificate()) != current) {
        for store in stores.iter().filter(|store| store.look(root) == State::Trusts) {
            let what = format!("the replaced CA sha256:{}: adit trust uninstall", root.short());
            print(&format!("{:<9} {}: it trusts {what}\n", "still", store.name()))?;
        }
    }
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
    for store in stores {
        print(&line(store.as_ref(), &store.look(authority.root()), true))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(authority: &Authority) -> String {
    format!("{}, sha256:{}", authority.name(), authority.fingerprint())
}

/// Returns the line about a store. `is_wanted`: whether the store should trust the CA.
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
    let shown = |path: &Path| path.display().to_string();
    if output == Shell::Json {
        let map: serde_json::Map<_, _> =
            variables.iter().map(|(name, path)| ((*name).to_owned(), shown(path).into())).collect();
        return format!("{:#}\n", serde_json::Value::Object(map));
    }
    let line = |(name, path): &(&'static str, std::path::PathBuf)| match output {
        Shell::Sh => shell::export(name, &shown(path)),
        Shell::Fish => shell::export_fish(name, &shown(path)),
        Shell::Powershell => shell::export_powershell(name, &shown(path)),
        Shell::Json => String::new(),
    };
    variables.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_a_configuration_are_those_that_a_ca_can_vouch_for() {
        let hosts = ["solo", "'*.dev.test'", "'[::1]'", "127.0.0.1"];
        let routes = hosts.map(|host| format!("{host}: {{namespace: shop, service: web}}")).join(", ");
        let text = format!("http: {{k8s: {{routes: {{{routes}}}}}}}\n");
        let config = crate::config::validate::parse(Path::new("test.yaml"), text.as_bytes()).unwrap();
        let names = configured(&config);
        let mut sorted = names.clone();
        sorted.sort();
        assert_eq!(sorted, ["dev.test", "k8s.localhost", "solo"]);
        let home = tempfile::tempdir().unwrap();
        Authority::create(home.path(), "ana at laptop", &names).unwrap();
        assert!(Authority::load(home.path()).unwrap().is_some_and(|made| made.serves(&names)));
    }

    #[test]
    fn variables_are_quoted_as_each_shell_has_it() {
        let variables = [("A", std::path::PathBuf::from("/it's here"))];
        for (shell, text) in [
            (Shell::Sh, "export A='/it'\\''s here'\n"),
            (Shell::Fish, "set -gx A '/it\\'s here'\n"),
            (Shell::Powershell, "$env:A = '/it''s here'\n"),
            (Shell::Json, "{\n  \"A\": \"/it's here\"\n}\n"),
        ] {
            assert_eq!(environment(&variables, shell), text);
        }
    }
}
