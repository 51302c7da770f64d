//! Messages on the terminal about what a command waits for.

use std::io::{self, IsTerminal, Write};

use crate::{printable::line, tunnel::OpenError};

/// Printer of messages to stderr, if that is a terminal.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    is_shown: bool,
}

impl Progress {
    /// `quiet`: prints nothing.
    pub fn new(quiet: bool) -> Self {
        Self { is_shown: !quiet && io::stderr().is_terminal() }
    }

    /// Prints what a target waits for.
    pub fn says(self, target: &str, reason: &str) {
        if self.is_shown {
            // An error means that nobody reads stderr.
            let _ = writeln!(io::stderr(), "waiting for {target}: {}", line(reason));
        }
    }

    /// Prints why a target cannot be reached yet: `postgres.shop: 0 of 1 pods ready (postgres-0: ContainerCreating)`.
    pub fn waits(self, target: &str, error: &OpenError) {
        self.says(target, &error.cause().unwrap_or_else(|| error.to_string()));
    }
}
