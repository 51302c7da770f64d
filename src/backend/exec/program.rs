//! The programs that join their standard streams to a connection, as they are found in images.

/// How long the program in the pod may try to connect, in seconds.
pub const CONNECT_SECONDS: u32 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Socat,
    Nc(Nc),
}

/// There are many programs of this name; what each has is told by its help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nc {
    options: &'static [&'static str],
    /// It says when it is connected: so it is known when it never is.
    pub announces: bool,
}

impl Nc {
    /// Returns what is known by what `nc -h` says.
    pub fn of_help(help: &str) -> Self {
        let flags = help.split_once("nc [-").and_then(|(_, rest)| rest.split_once(']')).map_or("", |(flags, _)| flags);
        let has = |flag: char| flags.chars().all(char::is_alphanumeric) && flags.contains(flag);
        if has('N') && has('v') {
            // OpenBSD: without -N the end of the input never reaches the other side.
            Self { options: &["-v", "-N"], announces: true }
        } else if help.contains("Ncat") {
            Self { options: &["-w", "10"], announces: false }
        } else if help.contains("Connect timeout") {
            // BusyBox, the small one.
            Self { options: &["-w", "10"], announces: false }
        } else if has('v') || help.lines().any(|line| line.trim_start().starts_with("-v")) {
            // BusyBox, the large one, and the traditional one: what they call -w is for more than connecting.
            Self { options: &["-v"], announces: true }
        } else {
            Self { options: &[], announces: false }
        }
    }
}

impl Program {
    /// Returns the command that joins its standard streams to a connection. Nothing passes a shell.
    pub fn command(self, host: &str, port: u16) -> Vec<String> {
        match self {
            Self::Socat => {
                let address = match host.contains(':') {
                    true => format!("TCP6:[{host}]:{port},connect-timeout={CONNECT_SECONDS}"),
                    false => format!("TCP:{host}:{port},connect-timeout={CONNECT_SECONDS}"),
                };
                // After one direction has ended, the other may take its time.
                vec!["socat".to_owned(), "-t".to_owned(), "86400".to_owned(), "-".to_owned(), address]
            }
            Self::Nc(nc) => {
                let words = ["nc"].into_iter().chain(nc.options.iter().copied()).map(str::to_owned);
                words.chain([host.to_owned(), port.to_string()]).collect()
            }
        }
    }

    /// The name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Socat => "exec of socat",
            Self::Nc(_) => "exec of nc",
        }
    }
}

/// Returns whether a line is the announcement of a connection, and not a complaint.
pub fn is_announcement(line: &str) -> bool {
    line.ends_with("succeeded!") || line.ends_with(" open")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_every_kind_become_words_that_no_shell_sees() {
        let last = |words: Vec<String>| words.last().cloned().unwrap();
        assert_eq!(last(Program::Socat.command("db.internal", 5432)), "TCP:db.internal:5432,connect-timeout=10");
        assert_eq!(last(Program::Socat.command("fd00::1", 80)), "TCP6:[fd00::1]:80,connect-timeout=10");
        assert_eq!(Program::Nc(Nc::of_help("")).command("10.0.0.5", 3306), ["nc", "10.0.0.5", "3306"]);
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
    fn announcements_are_told_from_complaints() {
        for line in [
            "Connection to 10.0.0.5 5432 port [tcp/postgresql] succeeded!",
            "10.0.0.5 (10.0.0.5:80) open",
            "(UNKNOWN) [10.0.0.5] 80 (http) open",
        ] {
            assert!(is_announcement(line), "{line}");
        }
        for line in ["nc: connect to 10.0.0.5 port 1 (tcp) failed: Connection refused", "nc: timed out"] {
            assert!(!is_announcement(line), "{line}");
        }
    }
}
