//! The chart's text: every value has a line in the README and an entry in the schema. `.ci/chart` renders it with helm.

use std::{collections::BTreeSet, fs, path::PathBuf};

use serde_json::Value;

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("charts/adit").join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(file(name)).unwrap()
}

/// A value with its description, in the order of the file.
struct Row {
    path: String,
    default: String,
    description: String,
}

/// Reads values.yaml: `# --` begins the description of the next key.
fn rows() -> Vec<Row> {
    let text = read("values.yaml");
    let (mut rows, mut path, mut description): (Vec<Row>, Vec<(usize, String)>, Option<String>) =
        (Vec::new(), Vec::new(), None);
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let line = line.trim();
        if let Some(begun) = line.strip_prefix("# -- ") {
            description = Some(begun.to_owned());
        } else if let (Some(comment), Some(text)) = (line.strip_prefix("# "), description.as_mut()) {
            text.push(' ');
            text.push_str(comment);
        } else if let Some((key, value)) = line.split_once(':').filter(|_| !line.starts_with('#')) {
            path.retain(|(at, _)| *at < indent);
            let whole = path.iter().map(|(_, key)| key.as_str()).chain([key]).collect::<Vec<_>>().join(".");
            // Keys below a value with a description belong to its default.
            let is_part = rows.last().is_some_and(|row| whole.starts_with(&format!("{}.", row.path)));
            match description.take() {
                Some(description) => rows.push(Row { path: whole, default: value.trim().to_owned(), description }),
                None => assert!(value.trim().is_empty() || is_part, "{whole} has no description"),
            }
            path.push((indent, key.to_owned()));
        }
    }
    rows
}

#[test]
fn the_chart_installs_the_version_of_the_program() {
    let version = env!("CARGO_PKG_VERSION");
    assert!(read("Chart.yaml").contains(&format!("\nappVersion: {version}\n")), "{version}");
}

#[test]
fn the_table_of_the_readme_is_that_of_the_values() {
    let mut table = "| value | default | |\n|---|---|---|\n".to_owned();
    for row in rows() {
        let default = match row.default.as_str() {
            "" => "see values.yaml".to_owned(),
            "\"\"" => String::new(),
            default => format!("`{default}`"),
        };
        table += &format!("| `{}` | {default} | {} |\n", row.path, row.description);
    }
    let readme = read("README.md");
    if std::env::var_os("ADIT_UPDATE").is_some() {
        let start = readme.find("| value |").unwrap();
        let end = readme[start..].find("\n\n").map_or(readme.len(), |at| start + at + 1);
        fs::write(file("README.md"), format!("{}{table}{}", &readme[..start], &readme[end..])).unwrap();
        return;
    }
    assert!(readme.contains(&table), "ADIT_UPDATE=1 cargo test --test it chart writes it:\n{table}");
}

#[test]
fn the_schema_knows_every_value_and_no_other() {
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    let known: BTreeSet<String> = rows().into_iter().map(|row| row.path).collect();
    fn leaves(schema: &Value, root: &Value, path: &str, found: &mut BTreeSet<String>) {
        let schema = match schema["$ref"].as_str() {
            Some(name) => &root["definitions"][name.rsplit('/').next().unwrap()],
            None => schema,
        };
        match schema["properties"].as_object() {
            Some(properties) => {
                assert_eq!(schema["additionalProperties"], false, "{path}");
                for (key, schema) in properties.iter().filter(|(key, _)| !path.is_empty() || *key != "global") {
                    leaves(schema, root, &format!("{path}{}{key}", if path.is_empty() { "" } else { "." }), found);
                }
            }
            None => drop(found.insert(path.to_owned())),
        }
    }
    let mut found = BTreeSet::new();
    leaves(&schema, &schema, "", &mut found);
    assert_eq!(found, known);
}
