//! A systemd user unit and its socket unit (systemd.service(5), systemd.socket(5)).

use std::{fmt::Write as _, path::Path};

use super::{Installed, Service, ServiceFile, escaped};

pub const SERVICE_UNIT: &str = "adit.service";
pub const SOCKET_UNIT: &str = "adit.socket";

/// Returns the units for `folder`, which is `~/.config/systemd/user`. Without listeners there is no socket unit.
pub fn files(service: &Service, folder: &Path) -> Vec<ServiceFile> {
    let mut files = vec![ServiceFile { path: folder.join(SERVICE_UNIT), text: service_unit(service) }];
    if !service.listeners.is_empty() {
        files.push(ServiceFile { path: folder.join(SOCKET_UNIT), text: socket_unit(service) });
    }
    files
}

/// Quotes a word of a unit (systemd.syntax(7)): `%` begins a specifier everywhere, `$` a variable in command lines.
fn quoted(word: &str, is_command: bool) -> String {
    let mut special = vec![('\\', "\\\\"), ('"', "\\\""), ('\n', "\\n"), ('%', "%%")];
    if is_command {
        special.push(('$', "$$"));
    }
    format!("\"{}\"", escaped(word, &special))
}

fn service_unit(service: &Service) -> String {
    let command: Vec<_> = service.command.iter().map(|word| quoted(word, true)).collect();
    let mut text = "[Unit]\nDescription=adit, access to Kubernetes Services by name\n".to_owned();
    if !service.listeners.is_empty() {
        let _ = write!(text, "Requires={SOCKET_UNIT}\nAfter={SOCKET_UNIT}\n");
    }
    let _ = write!(text, "\n[Service]\nType=exec\nExecStart={}\n", command.join(" "));
    for (name, value) in &service.environment {
        let _ = writeln!(text, "Environment={}", quoted(&format!("{name}={value}"), false));
    }
    text += "Restart=on-failure\n\
             RestartSec=1\n\
             # A restart does not mend a wrong configuration.\n\
             RestartPreventExitStatus=2\n\
             # Requests in progress have 10 s.\n\
             TimeoutStopSec=15\n\
             # Credential plugins are programs of any kind, which may write to their caches and compile at run time.\n\
             LockPersonality=yes\n\
             NoNewPrivileges=yes\n\
             RestrictRealtime=yes\n\
             RestrictSUIDSGID=yes\n\
             UMask=0077\n\
             \n[Install]\nWantedBy=default.target\n";
    if !service.listeners.is_empty() {
        let _ = writeln!(text, "Also={SOCKET_UNIT}");
    }
    text
}

fn socket_unit(service: &Service) -> String {
    let mut text =
        "[Unit]\nDescription=The listeners of adit, which stay open while it restarts\n\n[Socket]\n".to_owned();
    for address in &service.listeners {
        let _ = writeln!(text, "ListenStream={address}");
    }
    text + "BindIPv6Only=ipv6-only\nBacklog=4096\n\n[Install]\nWantedBy=sockets.target\n"
}

/// Reads the program and PATH from a unit, which adit need not have written.
pub fn installed(unit: &str) -> Installed {
    let mut installed = Installed::default();
    for line in unit.lines().map(str::trim) {
        if let Some(command) = line.strip_prefix("ExecStart=") {
            // Prefixes change how the program is started, not which one (systemd.service(5)).
            let command = command.trim_start_matches(['-', '@', ':', '+', '!']);
            installed.program = words(command).into_iter().next().unwrap_or_default().replace("$$", "$").into();
        } else if let Some(variables) = line.strip_prefix("Environment=") {
            let path =
                words(variables).into_iter().rev().find_map(|word| word.strip_prefix("PATH=").map(str::to_owned));
            installed.path = path.or(installed.path);
        }
    }
    installed
}

/// Splits a value of a unit into words as systemd does: removes quotes and backslashes, and turns `%%` into `%`.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word): (Vec<String>, Option<String>) = (Vec::new(), None);
    let (mut quote, mut rest) = (None, text.chars());
    while let Some(char) = rest.next() {
        match char {
            '\\' => {
                let escaped = rest.next().map(|char| if char == 'n' { '\n' } else { char });
                word.get_or_insert_default().extend(escaped);
            }
            '"' | '\'' if quote.is_none() && word.is_none() => {
                quote = Some(char);
                word = Some(String::new());
            }
            char if quote == Some(char) => quote = None,
            char if quote.is_none() && char.is_whitespace() => words.extend(word.take()),
            char => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    words.iter().map(|word| word.replace("%%", "%")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn words_of_a_unit_keep_their_special_characters() {
        let service = Service {
            command: vec!["/opt/my \"adit\"/100%/$HOME".to_owned(), "up".to_owned()],
            environment: BTreeMap::from([("PATH".to_owned(), "/a b:/c\\d:$x:%h".to_owned())]),
            listeners: Vec::new(),
        };
        let [unit] = &files(&service, Path::new("/units"))[..] else { panic!("one unit") };
        let read = installed(&unit.text);
        assert_eq!(read.program.to_str(), Some(service.command[0].as_str()));
        assert_eq!(read.path.as_ref(), service.environment.get("PATH"));
        assert!(unit.text.contains(r#"ExecStart="/opt/my \"adit\"/100%%/$$HOME" "up""#), "{}", unit.text);
        assert!(unit.text.contains(r#"Environment="PATH=/a b:/c\\d:$x:%%h""#), "{}", unit.text);
        assert!(!unit.text.contains(SOCKET_UNIT));
    }

    #[test]
    fn units_that_people_write_are_read_too() {
        for (unit, program, path) in [
            ("[Service]\nExecStart=-/usr/bin/adit up -v\n", "/usr/bin/adit", None),
            ("  ExecStart='/a b/adit' up\nEnvironment=X=1 \"PATH=/bin:/a b\"\n", "/a b/adit", Some("/bin:/a b")),
            ("Environment=PATH=/a\nEnvironment=PATH=/b\nEnvironment=Y=1\n", "", Some("/b")),
            ("ExecStart=\"/unclosed\nExecStart", "/unclosed", None),
            ("", "", None),
        ] {
            let read = installed(unit);
            assert_eq!((read.program.to_str(), read.path.as_deref()), (Some(program), path), "{unit}");
        }
    }

    #[test]
    fn the_socket_unit_has_every_listener() {
        let listeners = ["127.0.0.1:8989", "[::1]:8989"].map(|address| address.parse().unwrap());
        let service = Service {
            command: vec!["/usr/bin/adit".to_owned()],
            environment: BTreeMap::new(),
            listeners: listeners.to_vec(),
        };
        let units = files(&service, Path::new("/units"));
        assert_eq!(units[1].path, Path::new("/units/adit.socket"));
        assert!(units[1].text.contains("ListenStream=127.0.0.1:8989\nListenStream=[::1]:8989\n"));
        assert!(units[0].text.contains("Requires=adit.socket"));
    }
}
