//! Which module may use which: the table of ARCHITECTURE.md, checked against the imports of `src`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Each module with the modules that it may use. `*`: all.
const MAY_USE: &[(&str, &[&str])] = &[
    ("io", &[]),
    ("printable", &[]),
    ("wire", &["printable"]),
    ("drain", &[]),
    ("atomic_file", &[]),
    ("error_code", &[]),
    ("random", &[]),
    ("secrets", &[]),
    ("journal", &["secrets"]),
    ("metrics", &[]),
    ("telemetry", &["secrets"]),
    ("html", &[]),
    ("tls", &["printable"]),
    ("subprocess", &[]),
    ("trust", &["atomic_file", "subprocess"]),
    ("dns", &["atomic_file"]),
    ("config", &["secrets", "wire", "tls"]),
    ("routing", &["secrets", "wire", "config", "error_code"]),
    (
        "k8s",
        &[
            "atomic_file",
            "random",
            "secrets",
            "config",
            "routing",
            "io",
            "wire",
            "telemetry",
            "tls",
            "printable",
            "error_code",
        ],
    ),
    (
        "backend",
        &["secrets", "io", "drain", "wire", "config", "routing", "k8s", "telemetry", "printable", "error_code"],
    ),
    ("tunnel", &["io", "drain", "journal", "config", "routing", "backend", "error_code"]),
    ("guard", &["io", "wire"]),
    (
        "frontend",
        &[
            "random",
            "io",
            "wire",
            "journal",
            "html",
            "config",
            "routing",
            "tunnel",
            "guard",
            "metrics",
            "drain",
            "tls",
            "trust",
            "error_code",
        ],
    ),
    ("listener", &["io", "wire", "config", "routing", "frontend", "metrics", "drain", "error_code"]),
    (
        "admin",
        &["random", "io", "journal", "telemetry", "config", "routing", "k8s", "tunnel", "guard", "metrics", "drain"],
    ),
    ("dashboard", &["html", "config", "frontend", "admin"]),
    (
        "relay",
        &[
            "random",
            "io",
            "wire",
            "config",
            "routing",
            "backend",
            "tunnel",
            "guard",
            "frontend",
            "listener",
            "admin",
            "dashboard",
            "html",
            "metrics",
            "drain",
            "tls",
            "telemetry",
            "printable",
            "error_code",
        ],
    ),
    ("service", &[]),
    ("demo", &["io", "wire"]),
    ("app", &["*"]),
    ("cli", &["*"]),
];

#[test]
fn modules_use_only_what_the_table_allows() {
    let table: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for file in rust_files(&src) {
        let module = module_of(&src, &file);
        if module == "lib" || module == "main" {
            continue;
        }
        let allowed = table.get(module.as_str()).unwrap_or_else(|| panic!("{module} is not in the table"));
        let text = fs::read_to_string(&file).expect("a source file is readable");
        for used in used_modules(production_part(&text)) {
            if used != module && !allowed.contains(&"*") && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{}: {module} may not use {used}", file.strip_prefix(&src).unwrap().display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_in_architecture_md_is_this_one() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
    for (module, allowed) in MAY_USE {
        let wanted = match *allowed {
            [] => format!("| `{module}` | nothing of ours |"),
            ["*"] => format!("| `{module}` | all |"),
            some => format!("| `{module}` | {} |", some.join(", ")),
        };
        assert!(text.contains(&wanted), "ARCHITECTURE.md lacks the row {wanted}");
    }
}

#[test]
fn only_one_file_knows_yaml() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let users: Vec<PathBuf> = rust_files(&src)
        .into_iter()
        .filter(|file| fs::read_to_string(file).unwrap().contains("serde_saphyr"))
        .map(|file| file.strip_prefix(&src).unwrap().to_owned())
        .collect();
    assert_eq!(users, [PathBuf::from("config/file.rs")]);
}

/// The parts of the HTTP frontend must not have circular dependencies again.
#[test]
fn parts_of_the_http_front_do_not_use_each_other_in_a_circle() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/frontend/http");
    let files: Vec<(String, PathBuf)> = rust_files(&folder)
        .into_iter()
        .map(|file| (module_of(&folder, &file), file))
        .filter(|(part, _)| part != "tests")
        .collect();
    let parts: BTreeSet<&str> = files.iter().map(|(part, _)| part.as_str()).collect();
    let mut uses: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (part, file) in &files {
        let text = fs::read_to_string(file).expect("a source file is readable");
        let used = parts_used(production_part(&text), &parts);
        uses.entry(part).or_default().extend(used.into_iter().filter(|used| used != part));
    }
    assert!(uses["access"].contains("body") && uses["upstream"].contains("http2"), "uses are seen: {uses:?}");
    // Remove parts that use no remaining part, until none is left.
    while let Some(free) = uses.iter().find(|(_, used)| used.iter().all(|part| !uses.contains_key(part))) {
        let free = *free.0;
        uses.remove(free);
    }
    assert!(uses.is_empty(), "a circle, and what uses it: {uses:?}");
}

/// Returns which of `parts` the `use` declarations of this crate name.
fn parts_used<'a>(text: &str, parts: &BTreeSet<&'a str>) -> BTreeSet<&'a str> {
    let ours = ["use super::", "use crate::", "use self::", "pub use "];
    let mut used = BTreeSet::new();
    for declaration in text.split(';').map(|part| part.trim_start_matches(|c: char| c.is_whitespace())) {
        let at = ours.iter().filter_map(|start| declaration.find(start)).min();
        let Some(declaration) = at.map(|at| &declaration[at..]) else { continue };
        let declaration = if declaration.starts_with("use crate::") { of_the_front(declaration) } else { declaration };
        let words = declaration.split(|c: char| !c.is_alphanumeric() && c != '_');
        used.extend(words.filter_map(|word| parts.get(word)));
    }
    used
}

/// Returns what a declaration takes from `frontend::http`. Other modules may have parts with the same names.
fn of_the_front(declaration: &str) -> &str {
    let Some((_, taken)) = declaration.split_once("http::") else { return "" };
    let end = if taken.starts_with('{') { '}' } else { ',' };
    taken.split(end).next().unwrap_or(taken)
}

#[test]
fn groups_and_paths_are_both_seen() {
    let text = "use crate::{\n    io::{BoxedIo, splice},\n    routing::Target,\n};\nfn f(_: crate::drain::Drain) {}";
    assert_eq!(used_modules(text), BTreeSet::from(["drain", "io", "routing"].map(String::from)));
}

/// Returns the source files below a folder, without files of unit tests, which may use more modules.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Returns the top-level module of a file.
fn module_of(src: &Path, file: &Path) -> String {
    let relative = file.strip_prefix(src).unwrap();
    relative.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// Returns the text without its unit tests, which come last, and may use more modules.
fn production_part(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod tests").next().unwrap()
}

/// Returns the first segment of every `crate::` path, also in braces.
fn used_modules(text: &str) -> BTreeSet<String> {
    let code: String =
        text.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect();
    let mut used = BTreeSet::new();
    for (at, found) in code.match_indices("crate::") {
        let rest = &code[at + found.len()..];
        match rest.strip_prefix('{') {
            Some(group) => used.extend(heads(group)),
            None => used.extend(head(rest)),
        }
    }
    used
}

/// Returns the heads of the paths in a `{...}` group, given the text after its opening brace.
fn heads(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut heads = Vec::new();
    let mut at_start = true;
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_start = true,
            _ if at_start && character.is_alphabetic() => {
                heads.extend(head(&group[at..]));
                at_start = false;
            }
            _ => {}
        }
    }
    heads
}

fn head(path: &str) -> Option<String> {
    let end = path.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(path.len());
    (end > 0).then(|| path[..end].to_owned())
}
