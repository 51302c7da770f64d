//! Formats environment variables for shells and programs.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
};

use clap::ValueEnum;

use crate::config::shell;

/// Syntax of the variables, by the program that reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// sh, bash, zsh: export NAME='value'
    #[value(alias = "sh")]
    Shell,
    /// fish: set -gx NAME 'value'
    Fish,
    /// PowerShell: $env:NAME = 'value'
    Powershell,
    /// A .env file: NAME="value"
    Dotenv,
    /// A JSON object
    Json,
    /// GITHUB_ENV: NAME=value
    Github,
}

impl Form {
    /// Returns all variables in this format.
    pub fn write(self, variables: &BTreeMap<String, String>) -> String {
        if self == Self::Json {
            // A map of strings always serialises.
            return serde_json::to_string_pretty(variables).unwrap_or_default() + "\n";
        }
        variables.iter().map(|(name, value)| self.line(name, value)).collect()
    }

    fn line(self, name: &str, value: &str) -> String {
        match self {
            Self::Shell => shell::export(name, value),
            Self::Fish => shell::export_fish(name, value),
            Self::Powershell => shell::export_powershell(name, value),
            Self::Dotenv => format!("{name}={}\n", dotenv(value)),
            // The delimiter must be unpredictable: otherwise the author of a value could end it early, and set more variables.
            Self::Github if value.contains(['\n', '\r']) => {
                let end = format!("ADIT_{:016x}", RandomState::new().hash_one(name));
                format!("{name}<<{end}\n{value}\n{end}\n")
            }
            Self::Github => format!("{name}={value}\n"),
            Self::Json => String::new(),
        }
    }

    /// Adds a note before a text in this format that readers ignore: a comment, or a variable `key` if the format has no
    /// comments.
    pub fn mark(self, text: &str, key: &str, note: &str) -> String {
        match self {
            Self::Json => {
                let comma = if text.contains(':') { "," } else { "" };
                text.replacen('{', &format!("{{\n  \"{key}\": {note:?}{comma}"), 1)
            }
            Self::Github => format!("{key}={note}\n{text}"),
            _ => format!("# {note}\n{text}"),
        }
    }
}

/// Quotes a value for Docker Compose, Node, Ruby and Python. Between single quotes, all of them take it literally, also over
/// several lines. Between double quotes, Node interprets only `\n`, so escapes are used only if unavoidable.
fn dotenv(value: &str) -> String {
    if !value.contains('\'') && value.contains(['\\', '"', '$', '`']) {
        return format!("'{value}'");
    }
    let mut text = String::new();
    for character in value.chars() {
        match character {
            '\\' | '"' | '$' | '`' => text.extend(['\\', character]),
            '\n' => text.push_str("\\n"),
            character => text.push(character),
        }
    }
    format!("\"{text}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_value_has_in_it_stays_in_it() {
        let variables = BTreeMap::from([("A".to_owned(), "it's $HOME \"\\x\" `y`".to_owned())]);
        for (form, line) in [
            (Form::Shell, "export A='it'\\''s $HOME \"\\x\" `y`'\n"),
            (Form::Fish, "set -gx A 'it\\'s $HOME \"\\\\x\" `y`'\n"),
            (Form::Powershell, "$env:A = 'it''s $HOME \"\\x\" `y`'\n"),
            (Form::Dotenv, "A=\"it's \\$HOME \\\"\\\\x\\\" \\`y\\`\"\n"),
            (Form::Github, "A=it's $HOME \"\\x\" `y`\n"),
        ] {
            assert_eq!(form.write(&variables), line, "{form:?}");
        }
        let json: BTreeMap<String, String> = serde_json::from_str(&Form::Json.write(&variables)).unwrap();
        assert_eq!(json, variables);
        let stale = Form::Json.mark(&Form::Json.write(&variables), "ADIT_STALE", "gone");
        let stale: BTreeMap<String, String> = serde_json::from_str(&stale).unwrap();
        assert_eq!((stale["ADIT_STALE"].as_str(), &stale["A"]), ("gone", &variables["A"]));
    }

    #[test]
    fn no_value_adds_a_variable_to_those_of_github() {
        let value = "a\nADIT_X\nEVIL=1";
        let write = || Form::Github.write(&BTreeMap::from([("X".to_owned(), value.to_owned())]));
        let (first, second) = (write(), write());
        assert_ne!(first, second, "the end is another each time");
        let (opening, rest) = first.split_once('\n').unwrap();
        let end = opening.strip_prefix("X<<").unwrap();
        assert_eq!(rest.split_once(&format!("\n{end}\n")), Some((value, "")));
    }

    #[test]
    fn a_dotenv_file_says_the_same_to_each_reader() {
        for (value, line) in [
            ("plain it's", "A=\"plain it's\"\n"),
            ("two\nlines", "A=\"two\\nlines\"\n"),
            ("p$a\"b`c", "A='p$a\"b`c'\n"),
            ("back\\slash", "A='back\\slash'\n"),
            ("a$b\nc", "A='a$b\nc'\n"),
        ] {
            assert_eq!(Form::Dotenv.write(&BTreeMap::from([("A".to_owned(), value.to_owned())])), line);
        }
    }

    #[test]
    fn a_shell_reads_what_was_meant() {
        let value = "a'b\"c$d\\e`f g;h\ni".to_owned();
        let script = Form::Shell.write(&BTreeMap::from([("A".to_owned(), value.clone())]));
        let output =
            std::process::Command::new("sh").arg("-c").arg(format!("{script}printf %s \"$A\"")).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), value);
    }
}
