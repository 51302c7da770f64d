//! The global options that each command shows in its help.

use clap::{Arg, ArgMatches, Command, CommandFactory, parser::ValueSource};

use super::{Cli, report::CliError};

/// Heading of the global options in each help.
pub const HEADING: &str = "Global options";

const CLUSTER: &[&str] = &["config", "context", "namespace", "kubeconfig"];

/// Options that select a running adit.
const RUNNING: &[&str] = &["config", "listen"];

/// Help of `--listen` for commands that do not listen.
const OF_RUNNING: &str = "Address of the running adit";

/// The global options of each command, by id. Commands that are not in this list show all.
const USES: &[(&str, &[&[&str]])] = &[
    ("demo", &[&["listen", "verbose", "log_format"]]),
    ("init", &[&["config"]]),
    ("check", &[&["config"]]),
    ("schema", &[]),
    ("routes", &[CLUSTER, &["listen"]]),
    ("url", &[CLUSTER, &["listen"]]),
    ("run", &[CLUSTER, &["listen", "verbose", "log_format"]]),
    ("doctor", &[CLUSTER, &["listen", "verbose", "log_format"]]),
    ("env", &[CLUSTER, &["listen", "verbose", "log_format"]]),
    ("wait", &[CLUSTER, &["listen", "verbose", "log_format"]]),
    ("connect", &[CLUSTER, &["listen", "verbose", "log_format"]]),
    ("proxy", &[CLUSTER, &["listen"]]),
    ("browser", &[CLUSTER, &["listen"]]),
    ("status", &[RUNNING]),
    ("top", &[RUNNING]),
    ("ui", &[RUNNING]),
    ("unlock", &[RUNNING]),
    ("stop", &[RUNNING]),
    ("jump", &[CLUSTER]),
    ("local", &[&["verbose", "log_format"]]),
    ("expose", &[CLUSTER, &["verbose", "log_format"]]),
    ("service", &[CLUSTER, &["listen", "verbose"]]),
    ("server", &[&["listen", "workers", "verbose", "log_format"]]),
    ("trust", &[&["config"]]),
    ("dns", &[RUNNING]),
    ("completion", &[]),
    ("version", &[]),
];

/// Returns whether a command uses a global option.
pub fn uses(command: &str, option: &str) -> bool {
    let used = USES.iter().find(|(name, _)| *name == command);
    used.is_none_or(|(_, used)| used.iter().any(|ids| ids.contains(&option)))
}

/// Returns the first global option of a command line that its command does not use.
fn unused(matches: &ArgMatches) -> Option<String> {
    let (name, of_name) = matches.subcommand()?;
    let globals = Cli::command();
    globals.get_arguments().filter(|argument| argument.is_global_set()).find_map(|global| {
        let id = global.get_id().as_str();
        let is_given = of_name.value_source(id) == Some(ValueSource::CommandLine)
            // An empty value counts as unset.
            && of_name.get_raw(id).is_none_or(|mut values| values.any(|value| !value.is_empty()));
        // A log that a command does not write is no surprise, and aliases contain -v.
        let is_of_log = matches!(id, "verbose" | "log_format");
        (is_given && !is_of_log && !uses(name, id))
            .then(|| format!("'adit {name}' does not use --{}", global.get_long().unwrap_or(id)))
    })
}

/// Checks that the command uses each global option of its line.
///
/// # Errors
/// It does not use one: the user expects an effect that there is not.
pub fn check(matches: &ArgMatches) -> Result<(), CliError> {
    let hint = "'adit COMMAND --help' lists the options of a command";
    unused(matches).map_or(Ok(()), |unused| Err(CliError::usage(unused).hint(Some(hint))))
}

/// Hides global options from the help of commands that do not use them.
pub fn apply(command: Command) -> Command {
    let globals: Vec<Arg> = command.get_arguments().filter(|argument| argument.is_global_set()).cloned().collect();
    USES.iter().fold(command, |command, (name, used)| {
        command.mut_subcommand(name, |of_name| {
            globals.iter().fold(of_name, |of_name, global| {
                let is_used = used.iter().any(|ids| ids.contains(&global.get_id().as_str()));
                match (*name, global.get_id().as_str()) {
                    ("server", "listen") => {
                        of_name.arg(global.clone().help("Address to listen on for clients [default: 0.0.0.0:7835]"))
                    }
                    ("demo", "listen") => of_name
                        .arg(global.clone().help("Address to listen on: PORT, or HOST:PORT [default: 127.0.0.1:8989]")),
                    ("server", "workers") => {
                        of_name.arg(global.clone().help("Threads that carry data [default: one per core]"))
                    }
                    ("status" | "top" | "ui" | "unlock" | "stop", "config") => {
                        of_name.arg(global.clone().help("Configuration file of the running adit [default: any]"))
                    }
                    ("status", "listen") => {
                        of_name.arg(global.clone().help(format!("{OF_RUNNING} [default: all that run]")))
                    }
                    ("top", "listen") => of_name.arg(
                        global.clone().help(format!("{OF_RUNNING} [default: the only one that runs; else it asks]")),
                    ),
                    ("ui" | "unlock" | "stop", "listen") => {
                        of_name.arg(global.clone().help(format!("{OF_RUNNING} [default: the only one that runs]")))
                    }
                    (
                        "routes" | "url" | "run" | "doctor" | "env" | "wait" | "connect" | "proxy" | "browser" | "dns",
                        "listen",
                    ) => of_name
                        .arg(global.clone().help(format!("{OF_RUNNING} [default: http.listen, else 127.0.0.1:8989]"))),
                    _ if is_used => of_name,
                    _ => of_name.arg(global.clone().hide(true)),
                }
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns every command with its full name.
    fn commands() -> Vec<(String, Command)> {
        let mut root = apply(Cli::command());
        root.build();
        let mut found = vec![("adit".to_owned(), root)];
        let mut at = 0;
        while let Some((name, command)) = found.get(at).cloned() {
            let visible = command.get_subcommands().filter(|each| !each.is_hide_set() && each.get_name() != "help");
            found.extend(visible.map(|each| (format!("{name} {}", each.get_name()), each.clone())));
            at += 1;
        }
        found
    }

    #[test]
    fn every_command_of_the_table_exists() {
        let command = Cli::command();
        for (name, used) in USES {
            assert!(command.find_subcommand(name).is_some(), "{name}");
            for id in used.iter().copied().flatten() {
                assert!(command.get_arguments().any(|argument| argument.get_id() == id), "{id}");
            }
        }
    }

    #[test]
    fn every_option_has_help_and_help_shows_each_default() {
        let mut wrong = Vec::new();
        for (name, command) in commands() {
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                if argument.get_help().is_none() {
                    wrong.push(format!("{name}: {} has no help", argument.get_id()));
                }
                // An empty default means that the option is unset.
                let has_default = argument.get_default_values().iter().any(|value| !value.is_empty());
                if has_default && argument.is_hide_default_value_set() {
                    wrong.push(format!("{name}: {} hides its default", argument.get_id()));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn every_command_has_examples() {
        let lacking: Vec<_> = commands()
            .into_iter()
            // Subcommands such as `adit trust install` share the examples of `adit trust`.
            .filter(|(name, _)| name.split(' ').count() == 2 && name != "adit version")
            .filter(|(_, command)| {
                !command.get_after_help().is_some_and(|help| help.to_string().starts_with("Example"))
            })
            .map(|(name, _)| name)
            .collect();
        assert!(lacking.is_empty(), "{lacking:?}");
    }

    #[test]
    fn an_option_that_a_command_does_not_use_is_refused() {
        let unused = |line: &str| {
            let matches = apply(Cli::command()).try_get_matches_from(line.split(' ')).expect(line);
            unused(&matches)
        };
        for (line, wanted) in [
            ("adit completion bash --context x", "'adit completion' does not use --context"),
            ("adit --kubeconfig x version", "'adit version' does not use --kubeconfig"),
            ("adit status -n shop", "'adit status' does not use --namespace"),
            ("adit trust status --listen 5", "'adit trust' does not use --listen"),
        ] {
            assert_eq!(unused(line).as_deref(), Some(wanted), "{line}");
        }
        for line in [
            "adit --context x --workers 1",
            "adit up -v",
            "adit -v routes --log-format json",
            "adit routes --context x",
            "adit version --context=",
        ] {
            assert_eq!(unused(line), None, "{line}");
        }
    }

    #[test]
    fn a_command_shows_only_the_options_that_it_uses() {
        let mut shown: Vec<_> = commands();
        let help = |wanted: &str, shown: &mut Vec<(String, Command)>| {
            let at = shown.iter().position(|(name, _)| name == wanted).expect("a command");
            shown[at].1.render_long_help().to_string()
        };
        assert!(!help("adit schema", &mut shown).contains("--kubeconfig"));
        assert!(!help("adit server", &mut shown).contains("--context"));
        assert!(help("adit server", &mut shown).contains("[default: 0.0.0.0:7835]"));
        assert!(help("adit routes", &mut shown).contains("--kubeconfig"));
        assert!(help("adit status", &mut shown).contains("Address of the running adit [default: all that run]"));
        assert!(help("adit server", &mut shown).contains("--workers"));
        assert!(help("adit dns", &mut shown).contains("--config"));
        assert!(help("adit run", &mut shown).contains("A TARGET is SERVICE"));
    }
}
