//! The report of `adit doctor`, as text and as JSON.

use std::{fmt::Write, time::Duration};

use clap::CommandFactory;
use schemars::JsonSchema;
use serde::Serialize;

pub use crate::config::shell::quoted;
use crate::{
    cli::{Cli, Globals},
    config::shell,
    printable::line,
};

/// The parts of the report, in the order in which they are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    Machine,
    Trust,
    Kubeconfig,
    Cluster,
    Rights,
    Way,
    Target,
    Running,
}

impl Group {
    fn title(self) -> &'static str {
        match self {
            Self::Machine => "this machine",
            Self::Trust => "trust",
            Self::Kubeconfig => "kubeconfig",
            Self::Cluster => "cluster",
            Self::Rights => "permissions",
            Self::Way => "port-forward",
            Self::Target => "target",
            Self::Running => "running adit",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    Warn,
    Fail,
    Skip,
}

/// A repair: the command or the edit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Fix {
    pub text: String,
    /// A command that repairs it when it is pasted.
    pub command: Option<String>,
}

/// One check, and what it has found.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Check {
    /// A heading of docs/troubleshooting.md.
    pub id: &'static str,
    pub group: Group,
    pub status: Status,
    /// A short fact.
    pub says: String,
    pub detail: Option<String>,
    pub fix: Option<Fix>,
    pub took_ms: u64,
    /// The context that it is about.
    pub context: Option<String>,
}

/// All checks.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Report {
    #[schemars(range(min = 1, max = 1))]
    pub format: u32,
    /// Nothing has failed; with --strict, there is no warning either.
    pub ok: bool,
    pub counts: Counts,
    pub checks: Vec<Check>,
}

/// How many checks have ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Counts {
    pub ok: usize,
    pub warn: usize,
    pub fail: usize,
    pub skip: usize,
}

impl Check {
    pub fn new(id: &'static str, group: Group, status: Status, says: impl Into<String>) -> Self {
        let says = says.into();
        Self { id, group, status, says, detail: None, fix: None, took_ms: 0, context: None }
    }

    pub fn detail(mut self, detail: Option<impl Into<String>>) -> Self {
        self.detail = detail.map(Into::into);
        self
    }

    pub fn fix(mut self, text: impl Into<String>, command: Option<String>) -> Self {
        self.fix = Some(Fix { text: text.into(), command });
        self
    }

    /// Adds the options of this command line to the commands of adit, so that they use the same configuration and cluster.
    pub fn for_shell(mut self, globals: &Globals) -> Self {
        let context = self.context.as_deref().filter(|_| self.group != Group::Target).or(globals.context.as_deref());
        let commands = [self.detail.as_mut(), self.fix.as_mut().and_then(|fix| fix.command.as_mut())];
        for command in commands.into_iter().flatten() {
            let Some(words) = command.strip_prefix("adit ") else { continue };
            let (name, rest) = words.split_once(' ').unwrap_or((words, ""));
            if Cli::command().find_subcommand(name).is_none() {
                continue;
            }
            let mut globals = globals.clone();
            globals.namespace = globals.namespace.filter(|_| !rest.contains("-n "));
            let rest = if rest.is_empty() { String::new() } else { format!(" {rest}") };
            *command = globals.command_in(name, context) + &rest;
        }
        self
    }

    /// Adds an error's hint as the fix: as a command if it is one.
    pub fn hint(self, hint: Option<String>) -> Self {
        match hint {
            Some(hint) if shell::is_command(&hint) && !hint.contains('\n') => self.fix("run", Some(hint)),
            Some(hint) => self.fix(hint, None),
            None => self,
        }
    }

    pub fn of_context(mut self, context: &str) -> Self {
        self.context = Some(context.to_owned());
        self
    }

    pub fn took(mut self, took: Duration) -> Self {
        self.took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self
    }
}

impl Report {
    pub fn new(mut checks: Vec<Check>, strict: bool) -> Self {
        checks.sort_by_key(|check| check.group);
        let count = |status| checks.iter().filter(|check| check.status == status).count();
        let counts = Counts {
            ok: count(Status::Ok),
            warn: count(Status::Warn),
            fail: count(Status::Fail),
            skip: count(Status::Skip),
        };
        Self { format: 1, ok: counts.fail == 0 && (!strict || counts.warn == 0), counts, checks }
    }

    /// Returns the report as text. `colour`: ANSI escapes are allowed. `unicode`: the terminal can show it.
    pub fn text(&self, colour: bool, unicode: bool) -> String {
        let arrow = if unicode { "→" } else { "->" };
        let mut text = String::new();
        let mut title = None;
        for check in &self.checks {
            let part = (check.group, check.context.as_deref());
            if title != Some(part) {
                let of_context = check.context.as_deref().map(|name| format!(" {name}")).unwrap_or_default();
                let _ =
                    writeln!(text, "{}{}{of_context}", if title.is_some() { "\n" } else { "" }, check.group.title());
                title = Some(part);
            }
            let (glyph, word, paint) = match check.status {
                Status::Ok => (if unicode { "✓" } else { "+" }, "ok", "32"),
                Status::Warn => ("!", "warn", "33"),
                Status::Fail => (if unicode { "✗" } else { "x" }, "fail", "31"),
                Status::Skip => ("-", "skip", "2"),
            };
            let mark = format!("{glyph} {word:<4}");
            let mark = if colour { format!("\x1b[{paint}m{mark}\x1b[0m") } else { mark };
            let _ = writeln!(text, "  {mark}  {} [{}]", line(&check.says), check.id);
            for detail in check.detail.iter().flat_map(|detail| detail.lines()) {
                let _ = writeln!(text, "          {}", line(detail));
            }
            if let Some(fix) = check.fix.as_ref().filter(|_| check.status != Status::Ok) {
                let mut lines = fix.text.lines().chain(fix.command.as_deref().unwrap_or_default().lines());
                let first = match (&fix.command, lines.next()) {
                    (Some(command), Some(says)) if !command.contains('\n') => {
                        lines = "".lines().chain("".lines());
                        format!("{says}: {command}")
                    }
                    (_, says) => says.unwrap_or_default().to_owned(),
                };
                let _ = writeln!(text, "          {arrow} {}", line(&first));
                for rest in lines {
                    let _ = writeln!(text, "            {}", line(rest));
                }
            }
        }
        text + "\n" + &self.verdict() + "\n"
    }

    /// Returns the summary: the counts, and the first problem.
    pub fn verdict(&self) -> String {
        let Counts { fail, warn, .. } = self.counts;
        let many = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        if fail == 0 && warn == 0 {
            return "Everything adit needs is there.".to_owned();
        }
        let counts = format!("{}, {}", many(fail, "failure"), many(warn, "warning"));
        let worst = self.checks.iter().find(|check| check.status == if fail > 0 { Status::Fail } else { Status::Warn });
        let says = worst.map(|check| line(check.says.trim_end_matches('.'))).unwrap_or_default();
        match fail {
            0 => format!("{counts}: adit works; {says}."),
            _ => format!("{counts}: {says}."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(statuses: &[Status], strict: bool) -> Report {
        let check = |status: &Status| Check::new("clock", Group::Machine, *status, format!("it is {status:?}"));
        Report::new(statuses.iter().map(check).collect(), strict)
    }

    #[test]
    fn the_last_line_says_whether_all_is_well() {
        use Status::{Fail, Ok, Skip, Warn};
        assert_eq!(report(&[Ok, Skip], true).verdict(), "Everything adit needs is there.");
        assert_eq!(report(&[Ok, Warn], false).verdict(), "0 failures, 1 warning: adit works; it is Warn.");
        assert_eq!(report(&[Warn, Fail, Fail], false).verdict(), "2 failures, 1 warning: it is Fail.");
        for (statuses, strict, ok) in
            [(&[Ok, Warn][..], false, true), (&[Ok, Warn], true, false), (&[Fail], false, false)]
        {
            assert_eq!(report(statuses, strict).ok, ok, "{statuses:?} {strict}");
        }
    }

    #[test]
    fn escapes_of_a_pod_do_not_reach_the_terminal() {
        let evil = "HTTP, which answers 200 \x1b]0;x\x07\u{9b}2J\r";
        let check = Check::new("protocol", Group::Target, Status::Fail, evil).detail(Some(evil));
        let text = Report::new(vec![check.fix(evil, Some(format!("{evil}\n{evil}")))], false).text(false, true);
        assert_eq!(text.matches("HTTP, which answers 200  ]0;x  2J").count(), 6, "{text:?}");
        assert!(!text.chars().any(|each| each.is_control() && each != '\n'), "{text:?}");
    }

    #[test]
    fn a_fix_stands_below_what_it_repairs() {
        let check = Check::new("rights-pods", Group::Rights, Status::Fail, "cannot get pods in shop");
        let check = check.of_context("prod").fix("ask for this Role", Some("adit doctor --rbac -n shop".to_owned()));
        let text = Report::new(vec![check], false).text(false, true);
        let wanted = "permissions prod\n  ✗ fail  cannot get pods in shop [rights-pods]\n          \
            → ask for this Role: adit doctor --rbac -n shop\n";
        assert!(text.starts_with(wanted), "{text}");
    }
}
