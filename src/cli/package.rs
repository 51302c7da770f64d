//! `adit package`: the files of packages beside the binary, and the manifests of package managers.

mod manifests;
mod reference;

use std::{
    collections::BTreeMap,
    env,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Command, CommandFactory, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;
use jiff::Timestamp;

use super::{Cli, completion, report::CliError, scope};
use crate::{
    config::defaults,
    error_code,
    service::{Service, launchd, systemd},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  adit package dist && man dist/man/adit.1")]
pub struct Args {
    /// Folder to write manual pages, completions and service files to
    folder: PathBuf,
    /// Write the manifests of krew and Homebrew for the archives of this file, which sha256sum has printed
    #[arg(long, value_name = "FILE", requires = "url")]
    archives: Option<PathBuf>,
    /// URL of the folder that has the archives
    #[arg(long, value_name = "URL", requires = "archives")]
    url: Option<String>,
}

pub fn run(args: Args) -> Result<(), CliError> {
    let failed =
        |error: io::Error| CliError::new(format!("cannot write to {}", args.folder.display())).cause(Some(error));
    let mut all = files().map_err(failed)?;
    if let (Some(sums), Some(url)) = (&args.archives, &args.url) {
        let unread = || CliError::new(format!("the list of archives {} cannot be read", sums.display()));
        let text = fs::read_to_string(sums).map_err(|error| unread().cause(Some(error)))?;
        let archives = manifests::read(&text).map_err(|error| unread().cause(Some(error)))?;
        let url = url.trim_end_matches('/');
        all.push(("adit.krew.yaml".into(), manifests::krew(&archives, url).into_bytes()));
        all.push(("adit.rb".into(), manifests::homebrew(&archives, url).into_bytes()));
    }
    for (name, text) in all {
        let path = args.folder.join(name);
        path.parent().map_or(Ok(()), fs::create_dir_all).map_err(failed)?;
        fs::write(path, text).map_err(failed)?;
    }
    Ok(())
}

/// Returns each file with its path in the package.
fn files() -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut files = manual_pages()?;
    for shell in Shell::value_variants() {
        files.push((PathBuf::from(format!("completions/adit.{shell}")), completion::script(*shell)?));
    }
    let service = |program: &str, listeners| Service {
        command: vec![program.to_owned(), "up".to_owned()],
        environment: BTreeMap::new(),
        listeners,
    };
    let units = systemd::files(&service("/usr/bin/adit", defaults::loopback(defaults::PORT)), "".as_ref());
    let agent = launchd::file(&service("/usr/local/bin/adit", Vec::new()), "".as_ref(), None);
    let mut root = scope::apply(Cli::command());
    root.build();
    files.push((PathBuf::from("cli.md"), reference::markdown(&root).into_bytes()));
    files.push((PathBuf::from("errors.md"), error_code::markdown().into_bytes()));
    // `user` distinguishes it from a unit for the whole system, which another package may have. It is installed as adit.service.
    let units = units.into_iter().map(|file| (format!("adit.user.{}", extension(&file.path)).into(), file.text));
    files.extend(units.chain([(agent.path, agent.text)]).map(|(path, text)| (path, text.into_bytes())));
    Ok(files)
}

/// Returns the date of the pages, such as 2026-01-31: SOURCE_DATE_EPOCH (reproducible-builds.org), in seconds, else today.
fn date() -> String {
    let given =
        env::var("SOURCE_DATE_EPOCH").ok().and_then(|seconds| Timestamp::from_second(seconds.parse().ok()?).ok());
    given.unwrap_or_else(Timestamp::now).strftime("%F").to_string()
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(OsStr::to_str).unwrap_or_default()
}

/// Returns `adit.1`, and a page for each command.
fn manual_pages() -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut root = scope::apply(Cli::command()).disable_help_subcommand(true);
    root.build();
    let mut commands = vec![("adit".to_owned(), root)];
    let mut at = 0;
    while let Some((name, command)) = commands.get(at) {
        let visible = command.get_subcommands().filter(|command| !command.is_hide_set());
        let below: Vec<(String, Command)> =
            visible.map(|command| (format!("{name}-{}", command.get_name()), command.clone())).collect();
        commands.extend(below);
        at += 1;
    }
    let date = date();
    let page = |(name, command): (String, Command)| {
        let mut page = Vec::new();
        let manual = Man::new(command.display_name(name.clone())).title(name.clone());
        manual.date(&date).source(concat!("adit ", env!("CARGO_PKG_VERSION"))).manual("adit").render(&mut page)?;
        Ok((PathBuf::from(format!("man/{name}.1")), page))
    };
    commands.into_iter().map(page).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_the_help_is_in_the_page() {
        let root = scope::apply(Cli::command());
        let pages = manual_pages().unwrap();
        for command in root.get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = format!("man/adit-{}.1", command.get_name());
            let (_, page) = pages.iter().find(|(page, _)| page == Path::new(&name)).expect(&name);
            let page = String::from_utf8_lossy(page).replace("\\-", "-");
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                if let Some(long) = argument.get_long() {
                    assert!(page.contains(&format!("--{long}")), "{name}: --{long}");
                }
            }
        }
    }

    #[test]
    fn packages_hold_pages_completions_and_service_files() {
        let names: Vec<_> = files().unwrap().into_iter().map(|(path, _)| path.to_string_lossy().into_owned()).collect();
        for name in [
            "man/adit.1",
            "man/adit-routes.1",
            "completions/adit.bash",
            "completions/adit.fish",
            "adit.user.service",
            "adit.user.socket",
            "dev.adit.plist",
        ] {
            assert!(names.iter().any(|found| found == name), "{name}: {names:?}");
        }
    }
}
