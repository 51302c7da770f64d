//! `adit init`: writes a commented configuration file.

use std::{fs, io::Write, path::PathBuf};

use super::{
    Globals,
    report::{CliError, print},
    schema,
};

/// The file to write. It has every key, most of them in comments.
pub const TEMPLATE: &str = include_str!("../../examples/template.yaml");

const SCHEMA: &str = "adit.schema.json";

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  adit init\n  adit --config adit.yaml init\n\nIt writes adit.schema.json beside the file, for editors."
)]
pub struct Args {
    /// Replace a file that exists
    #[arg(long)]
    force: bool,
}

pub fn run(globals: &Globals, args: Args) -> Result<(), CliError> {
    let path = globals
        .config_path()
        .0
        .ok_or_else(|| CliError::usage("there is no home folder to write to").hint(Some("adit init --config FILE")))?;
    let folder = path.parent().map(PathBuf::from).unwrap_or_default();
    let failed = |error: std::io::Error| CliError::new(format!("cannot write {}: {error}", path.display()));
    fs::create_dir_all(&folder).map_err(failed)?;
    let mut options = fs::OpenOptions::new();
    options.write(true);
    if args.force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let mut file = match options.open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(
                CliError::new(format!("{} exists", path.display())).hint(Some("'adit init --force' replaces it"))
            );
        }
        Err(error) => return Err(failed(error)),
    };
    file.write_all(TEMPLATE.as_bytes()).map_err(failed)?;
    // Editors then find the schema without the network.
    let of_editors = folder.join(SCHEMA);
    fs::write(&of_editors, schema::text()).map_err(failed)?;
    print(&format!("wrote {}\nwrote {}, for editors\n", path.display(), of_editors.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    /// Adds the names of all keys in a schema.
    fn keys(schema: &Value, found: &mut BTreeSet<String>) {
        if let Some(properties) = schema["properties"].as_object() {
            found.extend(properties.keys().cloned());
        }
        match schema {
            Value::Object(parts) => parts.values().for_each(|part| keys(part, found)),
            Value::Array(parts) => parts.iter().for_each(|part| keys(part, found)),
            _ => {}
        }
    }

    #[test]
    fn every_key_is_in_the_template() {
        let mut all = BTreeSet::new();
        keys(&serde_json::from_str(&schema::text()).unwrap(), &mut all);
        assert!(all.contains("http") && all.contains("cluster_domain"), "{all:?}");
        // `expose` is the former name of `local`.
        all.remove("expose");
        let words: BTreeSet<&str> = TEMPLATE.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).collect();
        let missing: Vec<_> = all.iter().filter(|key| !words.contains(format!("{key}:").as_str())).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
