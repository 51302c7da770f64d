//! The documentation: its links work, its runnable commands run, and it mentions everything that exists.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::{process::Process, support::ports::free_port};

/// Returns every page of the repository.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found: Vec<PathBuf> = markdown_in(root).collect();
    let mut folders = vec![root.join("docs"), root.join("charts"), root.join("examples")];
    while let Some(folder) = folders.pop() {
        found.extend(markdown_in(&folder));
        folders.extend(entries(&folder).filter(|path| path.is_dir()));
    }
    found
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path())
}

fn markdown_in(folder: &Path) -> impl Iterator<Item = PathBuf> {
    entries(folder).filter(|path| path.extension().is_some_and(|extension| extension == "md"))
}

/// Returns the lines of a page outside of code blocks.
fn prose(text: &str) -> String {
    let mut in_block = false;
    let is_prose = |line: &&str| {
        let is_fence = line.trim_start().starts_with("```");
        in_block ^= is_fence;
        !in_block && !is_fence
    };
    text.lines().filter(is_prose).collect::<Vec<_>>().join("\n")
}

/// Returns the targets of `[text](target)` and `src="target"`.
fn links(text: &str) -> Vec<String> {
    let inline = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    let images = text.split("src=\"").skip(1).filter_map(|rest| rest.split_once('"')).map(|(target, _)| target);
    inline.chain(images).map(str::to_owned).collect()
}

/// Returns the anchor that forges generate for a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|each| each.is_alphanumeric() || matches!(each, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut broken = Vec::new();
    for page in pages() {
        let text = prose(&fs::read_to_string(&page).unwrap());
        for link in links(&text).into_iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            let (file, heading) = link.split_once('#').map_or((link.as_str(), None), |(file, at)| (file, Some(at)));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let has_heading = |heading: &str| {
                let text = prose(&fs::read_to_string(&target).unwrap_or_default());
                text.lines()
                    .filter_map(|line| line.strip_prefix('#'))
                    .any(|line| anchor(line.trim_start_matches('#')) == heading)
            };
            if !target.exists() || heading.is_some_and(|heading| !has_heading(heading)) {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[tokio::test]
async fn every_block_marked_as_runnable_runs_in_front_of_the_demo() {
    let process = Process::start("apiVersion: adit/v1\n", &[]).await;
    let mut count = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for block in text.split("```sh runnable\n").skip(1) {
            let script = block.split("```").next().unwrap().replace("8989", &process.http.port().to_string());
            let (is_ok, printed) = process.shell(&script).await;
            assert!(is_ok, "{}:\n{script}\n{printed}", page.display());
            count += 1;
        }
    }
    assert!(count > 0, "no page has a block that begins with ```sh runnable");
}

#[tokio::test]
async fn every_metric_has_its_line_in_the_reference() {
    let port = free_port();
    let process = Process::start(&format!("admin: {{listen: \"127.0.0.1:{port}\"}}\n"), &[]).await;
    let (is_ok, metrics) = process.shell(&format!("curl -sf http://127.0.0.1:{port}/metrics")).await;
    let page = include_str!("../../docs/reference/metrics.md");
    let told: BTreeSet<String> = metrics.lines().filter_map(family).collect();
    let missing: Vec<_> = told.iter().filter(|name| !page.contains(&format!("`{name}`"))).collect();
    assert!(is_ok && !told.is_empty() && missing.is_empty(), "not in docs/reference/metrics.md: {missing:?}");
}

/// Returns the name of the metric in a line, as in the reference: counters with `_total`. `None`: it is not a TYPE line.
fn family(line: &str) -> Option<String> {
    let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
    Some(if kind == "counter" { format!("{name}_total") } else { name.to_owned() })
}
