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
    ("trust", &["atomic_file", "config", "subprocess"]),
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

/// Circles of parts that are allowed, by folder.
const CIRCLES: &[(&str, &[&str])] = &[
    // A shared port belongs to its server, and serves with the tunnels of that server.
    ("relay", &["backend", "personal", "server"]),
    // A stream retries on the lease that opened it, and the task of a tunnel ends all its streams.
    ("tunnel", &["lease", "stream", "streams", "task"]),
];

#[test]
fn parts_of_a_module_do_not_use_each_other_in_a_circle() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders: Vec<String> = fs::read_dir(&src)
        .expect("a readable folder")
        .map(|entry| entry.expect("a readable entry").path())
        .filter(|path| path.is_dir())
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    folders.push("frontend/http".to_owned());
    for folder in &folders {
        let uses = uses_of_parts(&src, folder);
        let allowed = CIRCLES.iter().find(|(of, _)| of == folder).map_or(&[][..], |(_, parts)| parts);
        let circle = in_circles(&uses);
        assert!(circle.iter().eq(allowed), "{folder}: the parts {circle:?} use each other in a circle: {uses:?}");
    }
    assert!(uses_of_parts(&src, "frontend/http")["upstream"].contains("http2"), "uses are seen");
    assert!(uses_of_parts(&src, "k8s")["client"].contains("error"), "re-exports are seen");
}

/// Returns the parts of a module, which are the files and folders in its folder, each with the others that it uses.
fn uses_of_parts(src: &Path, folder: &str) -> BTreeMap<String, BTreeSet<String>> {
    let module: Vec<&str> = folder.split('/').collect();
    let files: Vec<(Vec<String>, String)> = rust_files(&src.join(folder))
        .into_iter()
        .map(|file| (path_of(src, &file), fs::read_to_string(file).expect("a source file is readable")))
        .filter(|(path, _)| path.get(module.len()).is_some_and(|part| part != "tests"))
        .collect();
    let parts: BTreeSet<&String> = files.iter().map(|(path, _)| &path[module.len()]).collect();
    let root = [src.join(folder).join("mod.rs"), src.join(format!("{folder}.rs"))];
    let root = root.iter().find_map(|file| fs::read_to_string(file).ok()).expect("a module has a file");
    let exported: BTreeMap<String, String> = paths(&root, &["pub use "])
        .into_iter()
        .filter_map(|path| Some((path.last()?.clone(), path.into_iter().find(|name| parts.contains(name))?)))
        .collect();
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in &files {
        let part = &path[module.len()];
        let used = paths(production_part(text), &["crate::", "self::", "super::"]).into_iter().filter_map(|used| {
            let ups = used.iter().filter(|name| *name == "super").count();
            let base = if used[0] == "crate" { &[][..] } else { &path[..path.len().checked_sub(ups)?] };
            let names = used.into_iter().filter(|name| !["crate", "self", "super"].contains(&name.as_str()));
            let whole: Vec<String> = base.iter().cloned().chain(names).collect();
            let name = whole.get(module.len()).filter(|_| whole.iter().zip(&module).all(|(a, b)| a == b))?;
            parts.contains(name).then_some(name).or_else(|| exported.get(name)).cloned()
        });
        uses.entry(part.clone()).or_default().extend(used.filter(|used| used != part));
    }
    uses
}

/// Returns the parts that reach themselves.
fn in_circles(uses: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<&str> {
    let reaches_itself = |part: &&String| {
        let (mut reached, mut next) = (BTreeSet::new(), vec![*part]);
        while let Some(from) = next.pop() {
            next.extend(uses[from].iter().filter(|to| reached.insert(to.as_str())));
        }
        reached.contains(part.as_str())
    };
    uses.keys().filter(reaches_itself).map(String::as_str).collect()
}

#[test]
fn groups_and_paths_are_both_seen() {
    let text = "use crate::{\n    io::{BoxedIo, splice},\n    routing::Target,\n};\nfn f(_: crate::drain::Drain) {}";
    assert_eq!(used_modules(text), BTreeSet::from(["drain", "io", "routing"].map(String::from)));
    let found: Vec<String> = paths("use super::{\n    a::{self, B as C},\n    d,\n};", &["super::"])
        .iter()
        .map(|path| path.join("/"))
        .collect();
    assert_eq!(found, ["super/a/self", "super/a/B", "super/d"]);
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

/// Returns the path of a file's module below `crate`.
fn path_of(src: &Path, file: &Path) -> Vec<String> {
    let names = file.strip_prefix(src).unwrap().iter().map(|name| name.to_str().unwrap().trim_end_matches(".rs"));
    names.filter(|name| *name != "mod").map(str::to_owned).collect()
}

/// Returns the first segment of every `crate::` path, also in braces.
fn used_modules(text: &str) -> BTreeSet<String> {
    paths(text, &["crate::"]).into_iter().filter_map(|path| path.into_iter().nth(1)).collect()
}

/// Returns the paths that begin with one of the texts; a tree `{...}` is several. `pub use ` itself is left out.
fn paths(text: &str, starts: &[&str]) -> Vec<Vec<String>> {
    let code: String =
        text.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect();
    let is_name = |character: char| character.is_alphanumeric() || character == '_' || character == ':';
    let mut paths = Vec::new();
    for start in starts {
        for (at, _) in code.match_indices(start).filter(|(at, _)| !code[..*at].ends_with(is_name)) {
            tree(code[at..].trim_start_matches("pub use "), &[], &mut paths);
        }
    }
    paths
}

/// Adds the paths of a `use` tree, or of one path. Returns the text behind it.
fn tree<'a>(text: &'a str, before: &[String], paths: &mut Vec<Vec<String>>) -> &'a str {
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start_matches(|character: char| character.is_whitespace() || character == ',');
            match rest.strip_prefix('}') {
                Some(behind) => return behind,
                None if rest.is_empty() => return rest,
                None => rest = tree(rest, before, paths).trim_start_matches(|character| !",}".contains(character)),
            }
        }
    }
    let end = text.find(|character: char| !character.is_alphanumeric() && character != '_').unwrap_or(text.len());
    let path: Vec<String> = before.iter().cloned().chain([text[..end].to_owned()]).collect();
    match text[end..].strip_prefix("::") {
        Some(rest) => tree(rest, &path, paths),
        None => {
            paths.push(path);
            &text[end..]
        }
    }
}
