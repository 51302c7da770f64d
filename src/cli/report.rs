//! Errors and exit codes of commands. Only this file prints errors.

use std::{
    fmt::{Display, Write as _},
    io::{self, Write},
    process::ExitCode,
};

use crate::printable::line;

/// Error of a command: what failed, why, and what to do.
#[derive(Debug)]
pub struct CliError {
    /// Exit code. 1: failed; 2: the command line or the configuration is wrong; others: see `adit run`.
    code: u8,
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
    /// Whether to print nothing, because the reader of stdout has gone.
    is_quiet: bool,
}

impl CliError {
    pub fn new(message: impl Display) -> Self {
        Self { code: 1, message: lines(&message.to_string()), causes: Vec::new(), hint: None, is_quiet: false }
    }

    /// Returns an error of the user's input, with exit code 2.
    pub fn usage(message: impl Display) -> Self {
        Self { code: 2, ..Self::new(message) }
    }

    /// Sets the exit code.
    pub fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// Sets the exit code, unless the command line or the configuration is wrong.
    pub fn failed_with(self, code: u8) -> Self {
        if self.code == 1 { self.code(code) } else { self }
    }

    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }

    pub fn cause(mut self, cause: Option<impl Display>) -> Self {
        self.causes.extend(cause.map(|cause| lines(&cause.to_string())));
        self
    }

    pub fn hint(mut self, hint: Option<impl Display>) -> Self {
        self.hint = hint.map(|hint| lines(&hint.to_string()));
        self
    }

    /// Adds a hint to run `adit doctor` for the target, with the options of this command; not if the command line is wrong.
    pub fn doctor(mut self, globals: &super::Globals, target: &str) -> Self {
        if self.code != 2 {
            let advice = format!("{} {}", globals.command("doctor"), crate::config::shell::quoted(target));
            self.hint = Some(self.hint.map_or_else(|| advice.clone(), |hint| format!("{hint}\nhint: {advice}")));
        }
        self
    }

    /// Prints the error to stderr, and returns the exit code.
    pub fn report(&self) -> ExitCode {
        if self.is_quiet {
            return ExitCode::SUCCESS;
        }
        let (red, cyan, plain) =
            if colours(&io::stderr()) { ("\x1b[1;31m", "\x1b[36m", "\x1b[0m") } else { ("", "", "") };
        let mut text = format!("{red}error:{plain} {}\n", self.message);
        for cause in &self.causes {
            let _ = writeln!(text, "caused by: {cause}");
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(text, "{cyan}hint:{plain} {hint}");
        }
        // If stderr is closed, nobody can be told.
        let _ = io::stderr().write_all(text.as_bytes());
        ExitCode::from(self.code)
    }
}

impl Display for CliError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CliError {}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        Self { is_quiet: error.kind() == io::ErrorKind::BrokenPipe, ..Self::new(error) }
    }
}

impl From<crate::app::reach::ReachError> for CliError {
    fn from(error: crate::app::reach::ReachError) -> Self {
        use crate::app::reach::{ReachError, Told};
        match error {
            ReachError::Named(error) => error.into(),
            error => {
                let Told { message, cause, hint } = error.told();
                Self::new(message).cause(cause).hint(hint)
            }
        }
    }
}

impl From<crate::admin::socket::CallError> for CliError {
    fn from(error: crate::admin::socket::CallError) -> Self {
        use crate::admin::socket::CallError;
        let message = error.to_string();
        match error {
            CallError::Refused(problem) => problem.into(),
            CallError::Silent(cause) => Self::new(message).cause(Some(cause)),
            CallError::Other(_) => Self::new(message),
        }
    }
}

impl From<crate::admin::api::answers::Problem> for CliError {
    fn from(problem: crate::admin::api::answers::Problem) -> Self {
        Self::new(problem.message).cause(problem.cause).hint(problem.hint)
    }
}

impl From<crate::k8s::ClusterError> for CliError {
    fn from(error: crate::k8s::ClusterError) -> Self {
        Self::new(&error).cause(error.cause()).hint(error.hint())
    }
}

impl From<crate::config::problem::LoadError> for CliError {
    fn from(error: crate::config::problem::LoadError) -> Self {
        let file = error.file.display();
        match error.whole() {
            Some(problem) => {
                Self::usage(format!("cannot load {file}")).cause(Some(&problem.message)).hint(problem.hint.as_ref())
            }
            None => {
                // The escapes are adit's own colours.
                let message = format!("cannot load {file}\n{}", error.snippets(colours(&io::stderr())));
                Self { message, ..Self::usage("") }.hint(Some(format!("adit check {file}")))
            }
        }
    }
}

pub use crate::telemetry::colours;

/// Prints a warning to stderr, with what to do.
pub fn warning(message: &str, hint: &str) {
    let (yellow, cyan, plain) = if colours(&io::stderr()) { ("\x1b[33m", "\x1b[36m", "\x1b[0m") } else { ("", "", "") };
    // If stderr is closed, nobody can be told.
    let _ = writeln!(io::stderr(), "{yellow}warning:{plain} {message}\n{cyan}hint:{plain} {hint}");
}

/// Returns whether the locale is UTF-8, according to the first variable that is set (POSIX, section 8.2).
pub fn has_unicode(variable: impl Fn(&str) -> Option<String>) -> bool {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| variable(name).filter(|value| !value.is_empty()));
    set.is_some_and(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

/// Writes to stdout. A closed pipe (`| head`) ends the command quietly.
///
/// # Errors
/// stdout cannot be written, but for a closed pipe.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// Returns a text that a terminal may show, with its line ends.
fn lines(text: &str) -> String {
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// Returns rows as text with aligned columns.
pub fn table(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<_>> = rows.iter().map(|row| row.iter().map(|cell| line(cell)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|at| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let mut shown = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(shown, "{cell:<width$}   ");
        }
        text.push_str(shown.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["NAME".to_owned(), "URL".to_owned()], vec!["argocd".to_owned(), "x".to_owned()]];
        assert_eq!(table(&rows), "NAME     URL\nargocd   x\n");
    }

    #[test]
    fn escapes_of_a_cluster_do_not_reach_the_terminal() {
        let evil = "a\x1b]0;x\x07\u{9b}2J\n\tb";
        assert_eq!(table(&[vec![evil.to_owned(), "c".to_owned()]]), "a ]0;x  2J  b   c\n");
        let error = CliError::new(evil).cause(Some(evil)).hint(Some(evil));
        let cleaned = "a ]0;x  2J\n b";
        assert_eq!(
            (error.message.as_str(), error.causes[0].as_str(), error.hint.as_deref()),
            (cleaned, cleaned, Some(cleaned))
        );
    }

    #[test]
    fn the_locale_says_what_can_be_shown() {
        let of = |all: &str, ctype: &str, lang: &str| {
            has_unicode(|name| {
                Some(match name {
                    "LC_ALL" => all.to_owned(),
                    "LC_CTYPE" => ctype.to_owned(),
                    _ => lang.to_owned(),
                })
            })
        };
        assert!(of("", "", "en_GB.UTF-8") && of("", "C.utf8", "C") && !of("C", "", "en_GB.UTF-8") && !of("", "", ""));
    }
}
