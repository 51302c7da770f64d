//! The problems of a file with their places, for a terminal, a log line, and `adit status`.

use std::{fmt, path::PathBuf};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// A place in the file; lines and columns count from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub line: usize,
    pub column: usize,
    /// Byte offsets of the first character and of the byte behind the last one.
    pub start: usize,
    pub end: usize,
}

/// A mistake in the file, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Keys from the root to the place: `http.k8s.routes."argocd.localhost".port`. Empty: the whole file.
    pub path: String,
    pub place: Place,
    pub message: String,
    pub hint: Option<String>,
}

/// Error of a file that gives no configuration.
#[derive(Clone, Debug)]
pub struct LoadError {
    pub file: PathBuf,
    pub problems: Vec<Problem>,
    /// Content of the file, to quote its lines.
    pub(super) text: String,
}

impl std::error::Error for LoadError {}

/// Writes a first line, then a line for each problem: `path: message (line 12, column 15)`.
impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot load {}", self.file.display())?;
        for problem in &self.problems {
            write!(f, "\n  {}", problem.line())?;
        }
        Ok(())
    }
}

impl LoadError {
    /// Returns the problem of a file that could not be read, so that there are no lines to quote.
    pub fn whole(&self) -> Option<&Problem> {
        self.problems.first().filter(|problem| problem.path.is_empty() && problem.place.line == 0)
    }

    /// Returns the problems with the lines that they are in, for a terminal.
    pub fn snippets(&self, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let name = self.file.display().to_string();
        let mut out = Vec::new();
        for problem in &self.problems {
            let title = Level::ERROR.primary_title(problem.line());
            let mut group = title.elements(Vec::<annotate_snippets::Element<'_>>::new());
            if problem.place.line > 0 && !self.text.is_empty() {
                let end = problem.place.end.max(problem.place.start);
                group = group.element(
                    Snippet::source(&self.text)
                        .path(&name)
                        .annotation(AnnotationKind::Primary.span(problem.place.start..end)),
                );
            }
            if let Some(hint) = &problem.hint {
                group = group.element(Level::HELP.no_name().message(format!("hint: {hint}")));
            }
            out.push(renderer.render(&[group]));
        }
        out.join("\n\n")
    }
}

impl Problem {
    /// Returns the problem as one line: `path: message (line 12, column 15)`.
    pub fn line(&self) -> String {
        let path = if self.path.is_empty() { String::new() } else { format!("{}: ", self.path) };
        match self.place.line {
            0 => format!("{path}{}", self.message),
            line => format!("{path}{} (line {line}, column {})", self.message, self.place.column),
        }
    }
}
