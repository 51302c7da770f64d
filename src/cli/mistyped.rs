//! Advice for command lines that clap refuses: the option or command that the user probably meant.

use std::ffi::OsString;

use clap::{
    Command, Error,
    error::{ContextKind, ContextValue, ErrorKind},
};

/// Words of kubectl and of similar tools, and the command of adit that does the same.
const ELSEWHERE: &[(&str, &str)] = &[
    ("get", "routes"),
    ("list", "routes"),
    ("ls", "routes"),
    ("services", "routes"),
    ("route", "routes"),
    ("port-forward", "run"),
];

/// Returns the error with better suggestions. `line`: the words of the command line.
pub fn advise(mut error: Error, root: &Command, line: &[OsString]) -> Error {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let given = context(ContextKind::InvalidSubcommand);
            let suggested: Vec<String> = match (
                ELSEWHERE.iter().find(|(word, _)| *word == given),
                error.get(ContextKind::SuggestedSubcommand),
            ) {
                (Some((_, command)), _) => vec![(*command).to_owned()],
                (None, Some(ContextValue::Strings(names))) => {
                    let is_shown =
                        |name: &String| root.find_subcommand(name).is_none_or(|command| !command.is_hide_set());
                    names.iter().filter(|name| is_shown(name)).cloned().collect()
                }
                (None, _) => Vec::new(),
            };
            match suggested.is_empty() {
                true => error.remove(ContextKind::SuggestedSubcommand),
                false => error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(suggested)),
            };
        }
        ErrorKind::UnknownArgument => {
            let given = context(ContextKind::InvalidArg);
            let words: Vec<&str> = line.iter().skip(1).filter_map(|word| word.to_str()).collect();
            let command = words.iter().find_map(|word| root.find_subcommand(word)).unwrap_or(root);
            if let Some(meant) = long_of(command, &given, &words) {
                // clap's other advice, to write the option behind --, would make it the command.
                error.remove(ContextKind::Suggested);
                error.insert(ContextKind::SuggestedArg, ContextValue::String(meant));
            }
        }
        // A second word of 'adit expose', which could be a subcommand.
        ErrorKind::ArgumentConflict => {
            let given = context(ContextKind::InvalidSubcommand);
            let expose = root.find_subcommand("expose").filter(|_| line.get(1).is_some_and(|word| word == "expose"));
            if !given.is_empty() && expose.is_some_and(|expose| expose.find_subcommand(&given).is_none()) {
                error.insert(ContextKind::SuggestedArg, ContextValue::String(format!("--as {given}")));
            }
        }
        _ => {}
    }
    error
}

/// Returns the long option that a word with one dash stands for: `-to` for `--to`, `-e` for `--env`. `given`: what clap has read of
/// the word, its first letter.
fn long_of(command: &Command, given: &str, words: &[&str]) -> Option<String> {
    let word = words.iter().find(|word| word.starts_with(given) && !word.starts_with("--"))?;
    let name = word.strip_prefix('-')?.split('=').next()?;
    let longs = command.get_arguments().filter(|option| !option.is_hide_set()).filter_map(|option| option.get_long());
    let shortest = longs.filter(|long| long.starts_with(name)).min_by_key(|long| long.len())?;
    Some(format!("--{shortest}"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    /// Returns the message and the exit code of a refused line.
    fn refused(line: &str) -> (String, i32) {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let root = crate::cli::command(&words);
        let error = advise(root.clone().try_get_matches_from(&words).expect_err(line), &root, &words);
        (error.to_string(), error.exit_code())
    }

    #[test]
    fn an_option_before_the_command_is_never_the_command() {
        for (line, meant) in [
            ("adit run -to db=postgres.shop -- true", Some("'--to'")),
            ("adit run --too db=postgres.shop -- true", Some("'--to'")),
            ("adit run -e X=1 -- true", Some("'--env'")),
            ("adit run --to db=a -secret=A=b:c true", Some("'--secret'")),
            ("adit run --zzz true", None),
            ("adit wait -t 5s web.shop", Some("'--timeout'")),
            ("adit expose 3000:80 web.shop", Some("'--as web.shop'")),
        ] {
            let (text, code) = refused(line);
            assert_eq!(code, 2, "{line}");
            assert!(meant.is_none_or(|meant| text.contains(meant)), "{line}: {text}");
        }
    }

    #[test]
    fn the_options_of_the_command_are_its_own() {
        for line in
            ["adit run --to db=a psql -U app --to x", "adit run --to db=a -- psql -U app --to x", "adit run -- -x"]
        {
            let matches = Cli::command().try_get_matches_from(line.split(' ')).expect(line);
            let (_, run) = matches.subcommand().unwrap();
            assert!(run.get_many::<String>("to").is_none_or(|all| all.len() == 1), "{line}");
            assert!(run.get_many::<OsString>("command").is_some(), "{line}");
        }
    }

    #[test]
    fn commands_of_other_tools_have_a_counterpart() {
        for (word, meant) in ELSEWHERE {
            assert!(refused(&format!("adit {word} web")).0.contains(&format!("'{meant}'")), "{word}");
        }
        assert!(refused("adit route").0.contains("'routes'"));
        for hidden in ["packages", "supervised"] {
            let (text, _) = refused(&format!("adit {hidden}"));
            assert!(!text.contains("'package'") && !text.contains("'supervise'"), "{text}");
        }
    }
}
