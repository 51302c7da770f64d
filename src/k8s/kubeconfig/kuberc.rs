//! Policy for credential plugins: `credentialPluginPolicy` in kubectl's preferences (kuberc).

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{config::file::foreign, tls::reason};

/// Returns the user's file: `$KUBERC`, else `~/.kube/kuberc`. `None`: `KUBERC=off`.
pub(super) fn path() -> Option<PathBuf> {
    match env::var_os("KUBERC").filter(|path| !path.is_empty()) {
        Some(path) => Some(PathBuf::from(path)).filter(|path| path.as_os_str() != "off"),
        None => etcetera::home_dir().ok().map(|home| home.join(".kube/kuberc")),
    }
}

/// The user's policy for plugins.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Policy {
    All,
    None,
    /// Allowed programs, as names and paths.
    Only(Vec<String>),
}

impl Policy {
    /// Reads the user's file. Without a file, all plugins may run.
    ///
    /// # Errors
    /// Fails if the file cannot be read. As in kubectl, no plugin may run then.
    pub(super) fn of_user() -> Result<Self, String> {
        path().map_or(Ok(Self::All), |path| Self::read(&path).map_err(|reason| format!("{}: {reason}", path.display())))
    }

    fn read(path: &Path) -> Result<Self, String> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::All),
            Err(error) => Err(format!("cannot read it: {}", reason(&error))),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let preferences = foreign(text)?;
        match &preferences["credentialPluginPolicy"] {
            Value::Null => Ok(Self::All),
            Value::String(policy) => match policy.as_str() {
                "" | "AllowAll" => Ok(Self::All),
                "DenyAll" => Ok(Self::None),
                "Allowlist" => {
                    let list = preferences["credentialPluginAllowlist"].as_array();
                    let named = |entry: &Value| {
                        let name = ["command", "name"].iter().find_map(|key| entry[*key].as_str());
                        name.map(str::to_owned).ok_or("an entry of credentialPluginAllowlist has no name".to_owned())
                    };
                    list.into_iter().flatten().map(named).collect::<Result<_, _>>().map(Self::Only)
                }
                other => {
                    Err(format!("credentialPluginPolicy is {other:?}, and has to be AllowAll, DenyAll or Allowlist"))
                }
            },
            _ => Err("credentialPluginPolicy is not a string".to_owned()),
        }
    }

    /// Returns whether a plugin may run. `find`: looks up a name without a slash.
    pub(super) fn allows(&self, program: &Path, find: impl Fn(&str) -> Option<PathBuf>) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Only(names) => names.iter().any(|name| {
                let allowed = if name.contains('/') { Some(PathBuf::from(name)) } else { find(name) };
                allowed.is_some_and(|allowed| allowed == program)
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_denies_all_plugins_or_all_but_some() {
        let parsed = |text: &str| Policy::parse(text);
        assert_eq!(parsed("kind: Preference\n"), Ok(Policy::All));
        assert_eq!(parsed("credentialPluginPolicy: AllowAll\n"), Ok(Policy::All));
        assert_eq!(parsed("credentialPluginPolicy: DenyAll\n"), Ok(Policy::None));
        assert!(parsed("credentialPluginPolicy: denyall\n").unwrap_err().contains("has to be"));
        assert!(parsed("credentialPluginPolicy: [\n").is_err());
        let only = "credentialPluginPolicy: Allowlist\ncredentialPluginAllowlist: [{name: aws}, {command: /opt/bin/kubelogin}]\n";
        let only = parsed(only).unwrap();
        let find = |name: &str| Some(Path::new("/usr/bin").join(name));
        for (program, wanted) in
            [("/usr/bin/aws", true), ("/home/x/aws", false), ("/opt/bin/kubelogin", true), ("/usr/bin/sh", false)]
        {
            assert_eq!(only.allows(Path::new(program), find), wanted, "{program}");
            assert!(Policy::All.allows(Path::new(program), find) && !Policy::None.allows(Path::new(program), find));
        }
        assert_eq!(Policy::read(Path::new("/nowhere/kuberc")), Ok(Policy::All));
    }
}
