//! The reference of the command line as Markdown: each command with its options.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, Command};

/// Returns docs/reference/cli.md. `root`: the grammar of the command line.
pub fn markdown(root: &Command) -> String {
    let mut text = "# Command line\n\n\
        Each command with its options, as `adit COMMAND --help` has them. `just docs` writes this page.\n"
        .to_owned();
    write(&mut text, root, root, "adit");
    text
}

fn write(text: &mut String, root: &Command, command: &Command, name: &str) {
    let about = command.get_long_about().or_else(|| command.get_about()).map(ToString::to_string).unwrap_or_default();
    let _ = write!(text, "\n## `{name}`\n\n{}\n", about.trim());
    let arguments =
        || command.get_arguments().filter(|argument| !argument.is_hide_set() && argument.get_id() != "help");
    let mut usage =
        format!("{name}{}", if arguments().any(|argument| !argument.is_positional()) { " [OPTIONS]" } else { "" });
    for argument in arguments().filter(|argument| argument.is_positional()) {
        let _ = write!(usage, " {}", positional(argument));
    }
    let visible = || command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help");
    if visible().next().is_some() {
        usage += if command.is_subcommand_required_set() { " COMMAND" } else { " [COMMAND]" };
    }
    let _ = write!(text, "\n```\n{usage}\n```\n");
    // `adit` explains a global option, unless it means something else to this command.
    let is_global = |argument: &&Arg| name != "adit" && root.get_arguments().any(|each| is_same(each, argument));
    let own = || arguments().filter(|argument| !is_global(argument));
    if own().next().is_some() {
        text.push_str("\n| option | meaning |\n|---|---|\n");
        for argument in own() {
            let _ = writeln!(text, "| {} | {} |", option(argument), meaning(argument));
        }
    }
    let global: Vec<_> = arguments().filter(is_global).map(option).collect();
    if !global.is_empty() {
        let _ = write!(text, "\nGlobal options: {}\n", global.join(", "));
    }
    if let Some(examples) = command.get_after_help() {
        let _ = write!(text, "\n```\n{}\n```\n", examples.to_string().trim());
    }
    for below in visible() {
        write(text, root, below, &format!("{name} {}", below.get_name()));
    }
}

fn is_same(one: &Arg, other: &Arg) -> bool {
    one.get_id() == other.get_id()
        && one.get_help().map(ToString::to_string) == other.get_help().map(ToString::to_string)
}

fn positional(argument: &Arg) -> String {
    let name = values(argument).unwrap_or_else(|| argument.get_id().as_str().to_uppercase());
    let many = if matches!(argument.get_action(), ArgAction::Append) { "..." } else { "" };
    if argument.is_required_set() { format!("{name}{many}") } else { format!("[{name}{many}]") }
}

/// Returns the names of an option's values. `None`: it takes none.
fn values(argument: &Arg) -> Option<String> {
    let takes = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
    let names = argument.get_value_names().unwrap_or_default();
    takes
        .then(|| names.iter().map(|name| name.to_string()).collect::<Vec<_>>().join(" "))
        .filter(|names| !names.is_empty())
}

fn option(argument: &Arg) -> String {
    if argument.is_positional() {
        return format!("`{}`", positional(argument));
    }
    let short = argument.get_short().map(|short| format!("-{short}"));
    let long = argument.get_long().map(|long| format!("--{long}"));
    let names = short.into_iter().chain(long).collect::<Vec<_>>().join(", ");
    let value = values(argument).map(|value| format!(" {value}")).unwrap_or_default();
    format!("`{names}{value}`").replace('|', "\\|")
}

/// Returns the help of an option with its default, on one line.
fn meaning(argument: &Arg) -> String {
    let help = argument.get_long_help().or_else(|| argument.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut text = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let is_flag = matches!(argument.get_action(), ArgAction::SetTrue | ArgAction::SetFalse | ArgAction::Count);
    let defaults: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if !defaults.is_empty() && !is_flag && !argument.is_hide_default_value_set() {
        let _ = write!(text, " [default: {}]", defaults.join(", "));
    }
    let possible: Vec<_> = argument.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    if !possible.is_empty() && !is_flag {
        let _ = write!(text, " [possible values: {}]", possible.join(", "));
    }
    if let Some(variable) = argument.get_env() {
        let _ = write!(text, " [env: {}]", variable.to_string_lossy());
    }
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::{Cli, scope};

    #[test]
    fn the_page_in_docs_is_what_the_grammar_says() {
        let mut root = scope::apply(Cli::command());
        root.build();
        assert!(
            markdown(&root) == include_str!("../../../docs/reference/cli.md"),
            "docs/reference/cli.md is out of date: just docs"
        );
    }
}
