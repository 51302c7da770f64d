//! A launchd agent (launchd.plist(5)).

use std::{fmt::Write as _, path::Path};

use super::{Installed, Service, ServiceFile, escaped};

pub const LABEL: &str = "dev.adit";

/// Returns the agent for `folder`, which is `~/Library/LaunchAgents`. launchd passes no listeners to it. `log`: file for standard
/// error; `None`: launchd discards it.
pub fn file(service: &Service, folder: &Path, log: Option<&Path>) -> ServiceFile {
    let mut text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
                    <!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n\
                    <plist version=\"1.0\">\n<dict>\n"
        .to_owned();
    let _ = write!(text, "  <key>Label</key>\n  <string>{LABEL}</string>\n  <key>ProgramArguments</key>\n  <array>\n");
    for word in &service.command {
        let _ = writeln!(text, "    <string>{}</string>", xml(word));
    }
    text += "  </array>\n  <key>EnvironmentVariables</key>\n  <dict>\n";
    for (name, value) in &service.environment {
        let _ = writeln!(text, "    <key>{}</key>\n    <string>{}</string>", xml(name), xml(value));
    }
    text += "  </dict>\n  <key>RunAtLoad</key>\n  <true/>\n  <key>KeepAlive</key>\n  <dict>\n\
             \x20   <key>SuccessfulExit</key>\n    <false/>\n  </dict>\n  <key>ProcessType</key>\n  <string>Interactive</string>\n";
    if let Some(log) = log {
        let _ = write!(text, "  <key>StandardErrorPath</key>\n  <string>{}</string>\n", xml(&log.to_string_lossy()));
    }
    text += "</dict>\n</plist>\n";
    ServiceFile { path: folder.join(format!("{LABEL}.plist")), text }
}

fn xml(text: &str) -> String {
    escaped(text, &[('&', "&amp;"), ('<', "&lt;"), ('>', "&gt;")])
}

/// Reads the program and PATH from an agent that adit has written.
pub fn installed(agent: &str) -> Installed {
    let string_after = |key: &str| {
        let (_, rest) = agent.split_once(&format!("<key>{key}</key>"))?;
        let (value, _) = rest.split_once("<string>")?.1.split_once("</string>")?;
        Some(value.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    };
    Installed { program: string_after("ProgramArguments").unwrap_or_default().into(), path: string_after("PATH") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_agent_is_xml_with_its_values_escaped() {
        let service = Service {
            command: vec!["/Applications/a & b/adit".to_owned(), "up".to_owned()],
            environment: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/<x>".to_owned())]),
            listeners: Vec::new(),
        };
        let file = file(&service, Path::new("/agents"), Some(Path::new("/logs/adit.log")));
        assert_eq!(file.path, Path::new("/agents/dev.adit.plist"));
        for part in ["<string>/Applications/a &amp; b/adit</string>", "<string>/usr/bin:/&lt;x&gt;</string>"] {
            assert!(file.text.contains(part), "{}", file.text);
        }
        let read = installed(&file.text);
        assert_eq!(
            (read.program.to_str(), read.path.as_deref()),
            (Some("/Applications/a & b/adit"), Some("/usr/bin:/<x>"))
        );
        assert_eq!(installed("<plist/>"), Installed::default());
        let count = |tag: &str| file.text.matches(tag).count();
        for tag in ["dict", "array", "key", "string"] {
            assert_eq!(count(&format!("<{tag}>")), count(&format!("</{tag}>")), "{tag}");
        }
    }
}
