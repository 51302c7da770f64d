//! Variables as shells and programs read them.

use std::collections::BTreeMap;

use clap::ValueEnum;

/// Syntax of the variables, by the program that reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// sh, bash, zsh: export NAME='value'
    Shell,
    /// fish: set -gx NAME 'value'
    Fish,
    /// PowerShell: $env:NAME = 'value'
    Powershell,
    /// A .env file: NAME="value"
    Dotenv,
    /// An object
    Json,
    /// GITHUB_ENV: NAME=value
    Github,
}

impl Form {
    /// Returns the text of all variables.
    pub fn write(self, variables: &BTreeMap<String, String>) -> String {
        if self == Self::Json {
            // A map of strings always serialises.
            return serde_json::to_string_pretty(variables).unwrap_or_default() + "\n";
        }
        variables.iter().map(|(name, value)| self.line(name, value)).collect()
    }

    fn line(self, name: &str, value: &str) -> String {
        match self {
            Self::Shell => format!("export {name}='{}'\n", value.replace('\'', "'\\''")),
            // fish knows \' and \\ between single quotes.
            Self::Fish => format!("set -gx {name} '{}'\n", value.replace('\\', "\\\\").replace('\'', "\\'")),
            Self::Powershell => format!("$env:{name} = '{}'\n", value.replace('\'', "''")),
            Self::Dotenv => format!("{name}=\"{}\"\n", dotenv(value)),
            // A value of several lines needs a mark that is not in it.
            Self::Github if value.contains('\n') => format!("{name}<<ADIT_{name}\n{value}\nADIT_{name}\n"),
            Self::Github => format!("{name}={value}\n"),
            Self::Json => String::new(),
        }
    }

    /// Marks a text of this form as stale, in a way that its readers pass over.
    pub fn mark(self, text: &str, why: &str) -> String {
        match self {
            Self::Json => text.replacen('{', &format!("{{\n  \"ADIT_STALE\": {why:?},"), 1),
            _ => format!("# {why}\n{text}"),
        }
    }
}

/// Docker Compose, Node and Ruby read these escapes between double quotes, and would fill in $NAME.
fn dotenv(value: &str) -> String {
    let mut text = String::new();
    for character in value.chars() {
        match character {
            '\\' | '"' | '$' | '`' => text.extend(['\\', character]),
            '\n' => text.push_str("\\n"),
            character => text.push(character),
        }
    }
    text
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
        let stale = Form::Json.mark(&Form::Json.write(&variables), "gone");
        let stale: BTreeMap<String, String> = serde_json::from_str(&stale).unwrap();
        assert_eq!((stale["ADIT_STALE"].as_str(), &stale["A"]), ("gone", &variables["A"]));
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
