//! `adit completion`: completion scripts for shells, which ask this program for the completions of a line.

mod names;

use std::{
    env,
    ffi::OsString,
    io::{self, Write},
};

use clap::{Command, CommandFactory};
use clap_complete::{
    Shell,
    engine::{self, ArgValueCompleter},
    env::Shells,
};

use super::{
    Cli, Globals,
    report::{CliError, print},
    scope,
};

/// Variable with the shell's name, by which a script asks for completions.
const ASKS: &str = "_ADIT_COMPLETE";

/// Index of the word to complete, for bash.
const INDEX: &str = "_ADIT_COMPLETE_INDEX";

/// Script for bash. bash also splits words at `=` and `:`, and replaces only the part after the last of them (COMP_WORDBREAKS,
/// bash(1)). So adit joins the parts of a word, and prints its completions without the part that bash keeps. The script of
/// clap_complete does neither, so `--to db=postgres.shop` would fail.
const BASH: &str = r#"_adit() {
    local IFS=$'\n'
    COMPREPLY=( $(ASKS=bash INDEX=$COMP_CWORD adit -- "${COMP_WORDS[@]}" 2>/dev/null) )
    [[ ${COMPREPLY-} == *[=/:] ]] && compopt -o nospace 2>/dev/null
}
complete -o bashdefault -F _adit adit
"#;

/// Finds the names of one kind.
type Names = fn(&Globals) -> Vec<String>;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  source <(adit completion bash)\n\n\
                        Completes contexts, namespaces, Services and tunnels too. It asks the running adit, or a cluster whose \
                        credentials need no sign-in, for at most 1 s")]
pub struct Args {
    /// Shell to print the script for
    shell: Shell,
}

pub fn run(args: Args) -> Result<(), CliError> {
    print(&String::from_utf8_lossy(&script(args.shell)?))
}

/// Returns the completion script for a shell.
pub fn script(shell: Shell) -> io::Result<Vec<u8>> {
    if shell == Shell::Bash {
        return Ok(BASH.replace("INDEX", INDEX).replace("ASKS", ASKS).into_bytes());
    }
    let shells = Shells::builtins();
    let completer = shells.completer(&shell.to_string()).ok_or(io::ErrorKind::Unsupported)?;
    let mut script = Vec::new();
    completer.write_registration(ASKS, "adit", "adit", "adit", &mut script)?;
    if shell == Shell::Zsh {
        // As a file of $fpath, zsh runs the script instead of the function at the first completion.
        script.extend(b"if [ \"$funcstack[1]\" = _adit ]; then _clap_dynamic_completer_adit \"$@\"; fi\n");
    }
    Ok(script)
}

/// Answers a completion script. Errors give no completions: there is no place to print them. Returns whether a script has asked.
pub fn answer() -> bool {
    let Some(shell) = env::var(ASKS).ok().filter(|shell| !shell.is_empty()) else { return false };
    let words: Vec<OsString> = env::args_os().skip_while(|word| word != "--").skip(1).collect();
    let mut found = Vec::new();
    let folder = env::current_dir().ok();
    match Shells::builtins().completer(&shell) {
        _ if shell == "bash" => {
            let index = env::var(INDEX).ok().and_then(|index| index.parse().ok()).unwrap_or_default();
            let (words, index, already) = joined(&words, index);
            let mut grammar = grammar(&words);
            for candidate in engine::complete(&mut grammar, words, index, folder.as_deref()).unwrap_or_default() {
                let text = candidate.get_value().to_string_lossy();
                found.extend(text.strip_prefix(&already).map(|rest| format!("{rest}\n")).unwrap_or_default().bytes());
            }
        }
        Some(completer) => {
            let mut grammar = grammar(&words);
            grammar.build();
            let _ = completer.write_complete(&mut grammar, words, folder.as_deref(), &mut found);
        }
        None => {}
    }
    let _ = io::stdout().write_all(&found);
    true
}

/// Joins the words of bash that were one. Returns them, the index of the word to complete, and the part of it that bash keeps.
fn joined(split: &[OsString], index: usize) -> (Vec<OsString>, usize, String) {
    let (mut words, mut wanted, mut already) = (Vec::<OsString>::new(), 0, String::new());
    let mut was_break = false;
    for (at, word) in split.iter().enumerate() {
        let is_break = word == "=" || word == ":";
        let kept = match words.last_mut() {
            Some(last) if (is_break || was_break) && at > 1 => {
                last.push(word);
                // bash keeps a break itself: the word to complete is the empty one behind it.
                if is_break { last.len() } else { last.len() - word.len() }
            }
            _ => {
                words.push(word.clone());
                0
            }
        };
        was_break = is_break;
        if at == index {
            wanted = words.len() - 1;
            already = words[wanted].to_string_lossy().get(..kept).unwrap_or_default().to_owned();
        }
    }
    if index >= split.len() {
        wanted = words.len();
        words.push(OsString::new());
    }
    (words, wanted, already)
}

/// Returns the grammar of the command line with the names that exist now. `words`: the line, whose options say where.
fn grammar(words: &[OsString]) -> Command {
    let globals = names::globals(words);
    let with = |names: Names| {
        let globals = globals.clone();
        ArgValueCompleter::new(move |current: &std::ffi::OsStr| {
            names::candidates(&names::in_time(names, &globals), current)
        })
    };
    let command = Cli::command()
        .mut_arg("context", |arg| arg.add(with(names::contexts)))
        .mut_arg("namespace", |arg| arg.add(with(names::namespaces)));
    let targets: [(&str, &str, Names); 10] = [
        ("run", "to", names::targets),
        ("env", "to", names::targets),
        ("wait", "targets", names::targets),
        ("connect", "target", names::targets),
        ("doctor", "target", names::targets),
        ("url", "target", names::targets),
        ("browser", "target", names::services),
        ("expose", "service", names::services),
        ("stop", "tunnel", names::tunnels),
        ("unlock", "locked", names::contexts),
    ];
    let command = targets.into_iter().fold(command, |command, (name, id, names)| {
        command.mut_subcommand(name, |of_name| of_name.mut_arg(id, |arg| arg.add(with(names))))
    });
    scope::apply(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_bash_splits_are_joined() {
        let of = |words: &[&str], index| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            let (words, index, already) = joined(&words, index);
            (words.iter().map(|word| word.to_str().unwrap().to_owned()).collect::<Vec<_>>().join(" "), index, already)
        };
        let is = |words: &str, index, already: &str| (words.to_owned(), index, already.to_owned());
        assert_eq!(of(&["adit", "run", "--to", "db", "=", "pos"], 5), is("adit run --to db=pos", 3, "db="));
        assert_eq!(of(&["adit", "run", "--to", "db", "="], 4), is("adit run --to db=", 3, "db="));
        assert_eq!(of(&["adit", "url", "web.shop", ":", "80"], 4), is("adit url web.shop:80", 2, "web.shop:"));
        assert_eq!(of(&["adit", "--context", "=", "p", "url", ""], 5), is("adit --context=p url ", 3, ""));
        assert_eq!(of(&["adit", "url"], 2), is("adit url ", 2, ""));
        assert_eq!(of(&[], 0), is("", 0, ""));
    }

    #[test]
    fn every_argument_with_names_exists() {
        grammar(&[]).debug_assert();
    }
}
