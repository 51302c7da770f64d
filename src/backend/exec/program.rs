//! The programs in container images that join their standard streams to a connection.

use std::borrow::Cow;

use crate::config::HostPort;

/// Connect timeout of the program in the pod, in seconds.
pub const CONNECT_SECONDS: u32 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Socat,
    Nc(Nc),
}

/// An nc. Many programs have this name; their help tells which options they take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nc {
    options: &'static [&'static str],
    /// Whether it reports on stderr that it is connected, so that adit notices if it never is.
    pub announces: bool,
}

impl Nc {
    /// Returns the options for the nc that prints this help (`nc -h`).
    pub fn of_help(help: &str) -> Self {
        let flags = help.split_once("nc [-").and_then(|(_, rest)| rest.split_once(']')).map_or("", |(flags, _)| flags);
        let has = |flag: char| flags.chars().all(char::is_alphanumeric) && flags.contains(flag);
        if has('N') && has('v') {
            // OpenBSD's nc: without -N it does not send a FIN at the end of its input.
            Self { options: &["-v", "-N"], announces: true }
        } else if help.contains("Ncat") {
            Self { options: &["-w", "10"], announces: false }
        } else if help.contains("Connect timeout") {
            // BusyBox's small nc.
            Self { options: &["-w", "10"], announces: false }
        } else if has('v') || help.lines().any(|line| line.trim_start().starts_with("-v")) {
            // BusyBox's large nc, and the traditional one: their -w limits more than the connect.
            Self { options: &["-v"], announces: true }
        } else {
            Self { options: &[], announces: false }
        }
    }
}

impl Program {
    /// Returns the command that joins its standard streams to a connection. No shell parses it.
    pub fn command(self, target: &HostPort) -> Vec<String> {
        match self {
            Self::Socat => {
                let family = if target.host.contains(':') { "TCP6" } else { "TCP" };
                let address = format!("{family}:{target},connect-timeout={CONNECT_SECONDS}");
                // After one direction has ended, the other may take its time. So socat outlives the server's end until its
                // input ends, and `-d -d` lets it report that end (see `Reports`).
                ["socat", "-d", "-d", "-t", "86400", "-", &address].map(str::to_owned).to_vec()
            }
            Self::Nc(nc) => {
                let words = ["nc"].into_iter().chain(nc.options.iter().copied()).map(str::to_owned);
                words.chain([target.host.to_string(), target.port.to_string()]).collect()
            }
        }
    }

    /// Returns the name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Socat => "exec of socat",
            Self::Nc(_) => "exec of nc",
        }
    }
}

/// Returns the complaint in a line of stderr. `None`: the line announces a connection, or is a notice of socat.
pub fn complaint(line: &str) -> Option<Cow<'_, str>> {
    if line.ends_with("succeeded!") || line.ends_with(" open") {
        return None;
    }
    match socat_message(line) {
        Some(("E" | "F", message)) => Some(in_words(message)),
        Some(_) => None,
        None => Some(Cow::Borrowed(line)),
    }
}

/// Returns a message of socat without the C library call: `getaddrinfo("db", "NULL", {1,0,1,6}, {}): Name does not resolve`.
fn in_words(message: &str) -> Cow<'_, str> {
    let called = message.strip_prefix("getaddrinfo(\"").and_then(|rest| rest.split_once('"'));
    match (called, message.rsplit_once("): ")) {
        (Some((host, _)), Some((_, reason))) => Cow::Owned(format!("the pod cannot resolve {host}: {reason}")),
        _ => Cow::Borrowed(message),
    }
}

/// Returns the level and the text of a socat message. `2024/01/01 00:00:00 socat[7] N socket 2 (fd 5) is at EOF` has
/// the level N, a notice.
fn socat_message(line: &str) -> Option<(&str, &str)> {
    let (_, rest) = line.split_once(" socat[")?;
    let (_, rest) = rest.split_once("] ")?;
    rest.split_once(' ').filter(|(level, _)| level.len() == 1)
}

/// How the server's direction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerEnd {
    Clean,
    /// With socat's reason; empty: socat gave none.
    Broken(String),
}

/// Parser of socat's reports on stderr. Accepts lines in pieces.
#[derive(Default)]
pub struct Reports {
    line: Vec<u8>,
    warning: String,
    is_in_error: bool,
    /// Process ID of socat in the pod.
    pub pid: Option<u32>,
    pub is_connected: bool,
    /// socat has read all of its input, and delivered it to the server.
    pub input_ended: bool,
    pub server_ended: Option<ServerEnd>,
}

impl Reports {
    /// Maximum bytes kept of a line. No report of interest is longer.
    const LONGEST: usize = 512;

    /// Parses a piece of stderr.
    pub fn take(&mut self, piece: &[u8]) {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let room = Self::LONGEST.saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.take_line(String::from_utf8_lossy(&line).trim_end());
            }
        }
    }

    fn take_line(&mut self, line: &str) {
        let Some((level, message)) = socat_message(line) else { return };
        let pid = || line.split_once(" socat[")?.1.split_once(']')?.0.parse().ok();
        self.pid = self.pid.or_else(pid);
        let is_end_of = |side: &str| message.starts_with(side) && message.ends_with(" is at EOF");
        match level {
            // `read(5, 0x561389ad7000, 8192): Connection reset by peer`
            "W" => message.rsplit_once("): ").map_or(message, |(_, reason)| reason).clone_into(&mut self.warning),
            "N" if message.starts_with("starting data transfer loop") => self.is_connected = true,
            "N" if message == "socket 2 to socket 1 is in error" => self.is_in_error = true,
            "N" if is_end_of("socket 1 ") => self.input_ended = true,
            "N" if is_end_of("socket 2 ") => {
                let end = if self.is_in_error { ServerEnd::Broken(self.warning.clone()) } else { ServerEnd::Clean };
                self.server_ended.get_or_insert(end);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Host;

    #[test]
    fn hosts_of_every_kind_become_words_that_no_shell_sees() {
        let last = |words: Vec<String>| words.last().cloned().unwrap();
        let target = |host, port: u16| HostPort { host: Host::new(host).unwrap(), port: port.try_into().unwrap() };
        assert_eq!(
            last(Program::Socat.command(&target("db.internal", 5432))),
            "TCP:db.internal:5432,connect-timeout=10"
        );
        assert_eq!(last(Program::Socat.command(&target("fd00::1", 80))), "TCP6:[fd00::1]:80,connect-timeout=10");
        assert_eq!(Program::Nc(Nc::of_help("")).command(&target("10.0.0.5", 3306)), ["nc", "10.0.0.5", "3306"]);
    }

    #[test]
    fn each_kind_of_nc_is_known_by_its_help() {
        let openbsd = "OpenBSD netcat (Debian patchlevel 1.219-1)\nusage: nc [-46CDdFhklNnrStUuvZz] [-I length]";
        let macos_like = "usage: nc [-46AacCDdEFhklMnOortUuvz] [-K tc] [-b boundif]";
        let small_busybox = "Usage: nc [-iN] [-wN] [-l] [-p PORT]\n\n\t-w SEC\tConnect timeout\n";
        let large_busybox = "Usage: nc [OPTIONS] HOST PORT  - connect\n\t-v\tVerbose\n\t-w SEC\tTimeout for connects and final net reads";
        let ncat = "Ncat 7.93 ( https://nmap.org/ncat )\nUsage: ncat [options] [hostname] [port]\n  -v, --verbose";
        let traditional =
            "[v1.10-47]\nconnect to somewhere:\tnc [-options] hostname port[s] [ports] ...\n\t-v\t\t\tverbose";
        for (help, words) in [
            (openbsd, &["-v", "-N"][..]),
            (macos_like, &["-v"]),
            (small_busybox, &["-w", "10"]),
            (large_busybox, &["-v"]),
            (ncat, &["-w", "10"]),
            (traditional, &["-v"]),
            ("usage: nc HOST PORT", &[]),
        ] {
            let nc = Nc::of_help(help);
            assert_eq!(nc.options, words, "{help}");
            assert_eq!(nc.announces, words.contains(&"-v"));
        }
    }

    #[test]
    fn socat_reports_how_the_server_ended() {
        let start = "2026/11/29 09:34:53 socat[17] N starting data transfer loop with FDs [0,1] and [5,5]\n";
        let input = "2026/11/29 09:34:53 socat[17] N socket 1 (fd 0) is at EOF\n";
        let broken = "2026/11/29 09:34:53 socat[17] W read(5, 0x55f4, 8192): Connection reset by peer\n\
                      2026/11/29 09:34:53 socat[17] N socket 2 to socket 1 is in error\n";
        let end = "2026/11/29 09:34:53 socat[17] N socket 2 (fd 5) is at EOF\n";
        for (broken, ended) in
            [("", ServerEnd::Clean), (broken, ServerEnd::Broken("Connection reset by peer".to_owned()))]
        {
            let before = [start, input, broken].concat();
            for size in [1, 7, before.len()] {
                let mut reports = Reports::default();
                before.as_bytes().chunks(size).for_each(|piece| reports.take(piece));
                assert_eq!((reports.pid, reports.is_connected, reports.input_ended), (Some(17), true, true));
                assert_eq!(reports.server_ended, None, "in pieces of {size}");
                end.as_bytes().chunks(size).for_each(|piece| reports.take(piece));
                assert_eq!(reports.server_ended.as_ref(), Some(&ended), "in pieces of {size}");
            }
        }
        let mut reports = Reports::default();
        reports.take(&[b'x'; 100_000]);
        assert!(reports.line.len() <= Reports::LONGEST);
        reports.take(b" socat[17] N socket 2 (fd 5) is at EOF\n");
        assert_eq!(reports.server_ended, None, "it is a part of a longer line");
    }

    #[test]
    fn announcements_are_told_from_complaints() {
        for line in [
            "Connection to 10.0.0.5 5432 port [tcp/postgresql] succeeded!",
            "10.0.0.5 (10.0.0.5:80) open",
            "(UNKNOWN) [10.0.0.5] 80 (http) open",
        ] {
            assert_eq!(complaint(line), None, "{line}");
        }
        for line in ["2026/11/29 09:35:02 socat[23] N exit(1)", "2026/11/29 09:35:02 socat[23] W ioctl: odd"] {
            assert_eq!(complaint(line), None, "{line}");
        }
        assert_eq!(
            complaint("2026/11/29 09:35:02 socat[23] E connect(5, AF=2 10.88.1.110:7199, 16): Connection refused")
                .as_deref(),
            Some("connect(5, AF=2 10.88.1.110:7199, 16): Connection refused")
        );
        let unknown =
            "2026/11/29 09:35:02 socat[23] E getaddrinfo(\"db.invalid\", \"NULL\", {1,0,1,6}, {}): Temporary failure";
        assert_eq!(complaint(unknown).as_deref(), Some("the pod cannot resolve db.invalid: Temporary failure"));
        for line in ["nc: connect to 10.0.0.5 port 1 (tcp) failed: Connection refused", "nc: timed out"] {
            assert_eq!(complaint(line).as_deref(), Some(line));
        }
    }
}
