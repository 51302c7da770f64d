//! Manifests of the package managers krew and Homebrew, which install the archives.

use std::fmt::Write as _;

/// An archive of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// `adit-x86_64-unknown-linux-musl-v0.1.0.tar.gz`
    pub file: String,
    /// 64 hexadecimal digits.
    pub sha256: String,
}

/// Error of a list of archives.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SumsError {
    #[error("line {0} is not 'SHA256  FILE'")]
    Line(usize),
    #[error("{0:?} is not named adit-TARGET-vVERSION.tar.gz")]
    Name(String),
}

/// Parses the output of `sha256sum`. Files other than `.tar.gz`, such as packages, are no archives and left out.
///
/// # Errors
/// A line has another format, or an archive's name is not one of `just dist`.
pub fn read(sums: &str) -> Result<Vec<Archive>, SumsError> {
    let mut archives = Vec::new();
    for (number, line) in sums.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let (sha256, file) = line.split_once("  ").ok_or(SumsError::Line(number + 1))?;
        if sha256.len() != 64 || !sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(SumsError::Line(number + 1));
        }
        if !file.ends_with(".tar.gz") {
            continue;
        }
        let archive = Archive { file: file.to_owned(), sha256: sha256.to_owned() };
        archive.platform().ok_or_else(|| SumsError::Name(file.to_owned()))?;
        archives.push(archive);
    }
    Ok(archives)
}

impl Archive {
    /// Returns Go's names of system and processor. `None`: the file's name has another format.
    fn platform(&self) -> Option<(&'static str, &'static str)> {
        let target = self.file.strip_prefix("adit-")?.strip_suffix(".tar.gz")?.rsplit_once("-v")?.0;
        let processor = match target.split('-').next()? {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            _ => return None,
        };
        let system = match () {
            () if target.contains("-linux-") => "linux",
            () if target.ends_with("-apple-darwin") => "darwin",
            () if target.contains("-windows-") => "windows",
            () => return None,
        };
        Some((system, processor))
    }

    /// Returns the name of the folder in the archive.
    fn folder(&self) -> &str {
        self.file.trim_end_matches(".tar.gz")
    }
}

/// Returns the manifest of the kubectl plugin (krew.googlecontainertools.github.com/v1alpha2). `url`: folder of the archives.
pub fn krew(archives: &[Archive], url: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut text = format!(
        "apiVersion: krew.googlecontainertools.github.com/v1alpha2\n\
         kind: Plugin\n\
         metadata:\n\
         \x20 name: adit\n\
         spec:\n\
         \x20 version: v{version}\n\
         \x20 homepage: {url}\n\
         \x20 shortDescription: Reach every Service by name, on demand\n\
         \x20 description: |\n\
         \x20   Runs a local proxy: http://SERVICE.NAMESPACE.localhost:8989 is the Service, and TCP ports lead to\n\
         \x20   databases. Port-forwards are opened on demand, follow the pods, and close when they are idle.\n\
         \x20 platforms:\n"
    );
    for archive in archives {
        let Some((system, processor)) = archive.platform() else { continue };
        let program = if system == "windows" { "adit.exe" } else { "adit" };
        let (file, folder, sha256) = (&archive.file, archive.folder(), &archive.sha256);
        let _ = write!(
            text,
            "\x20 - selector:\n\
             \x20     matchLabels:\n\
             \x20       os: {system}\n\
             \x20       arch: {processor}\n\
             \x20   uri: {url}/{file}\n\
             \x20   sha256: {sha256}\n\
             \x20   bin: {program}\n\
             \x20   files:\n\
             \x20   - from: {folder}/{program}\n\
             \x20     to: .\n\
             \x20   - from: {folder}/LICENSE\n\
             \x20     to: .\n"
        );
    }
    text
}

/// Returns the formula of Homebrew. `url`: folder of the archives.
pub fn homebrew(archives: &[Archive], url: &str) -> String {
    let mut text = format!(
        "class Adit < Formula\n\
         \x20 desc \"Reach every Service of a Kubernetes cluster by name, on demand\"\n\
         \x20 homepage \"{url}\"\n\
         \x20 version \"{}\"\n\
         \x20 license \"Apache-2.0\"\n\n",
        env!("CARGO_PKG_VERSION")
    );
    for (system, block) in [("darwin", "on_macos"), ("linux", "on_linux")] {
        let of_system: Vec<_> =
            archives.iter().filter(|archive| archive.platform().is_some_and(|is| is.0 == system)).collect();
        if of_system.is_empty() {
            continue;
        }
        let _ = writeln!(text, "  {block} do");
        for archive in of_system {
            let on = if archive.platform().is_some_and(|is| is.1 == "arm64") { "on_arm" } else { "on_intel" };
            let (file, sha256) = (&archive.file, &archive.sha256);
            let _ = write!(text, "    {on} do\n      url \"{url}/{file}\"\n      sha256 \"{sha256}\"\n    end\n");
        }
        text += "  end\n\n";
    }
    text += "  def install\n\
             \x20   bin.install \"adit\"\n\
             \x20   man1.install Dir[\"man/*.1\"]\n\
             \x20   bash_completion.install \"completions/adit.bash\" => \"adit\"\n\
             \x20   zsh_completion.install \"completions/adit.zsh\" => \"_adit\"\n\
             \x20   fish_completion.install \"completions/adit.fish\"\n\
             \x20 end\n\n\
             \x20 test do\n\
             \x20   assert_match version.to_s, shell_output(\"#{bin}/adit version\")\n\
             \x20 end\n\
             end\n";
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://example.com/v0.1.0";

    fn sums(files: &[&str]) -> String {
        files.iter().map(|file| format!("{}  {file}\n", "ab".repeat(32))).collect()
    }

    #[test]
    fn every_archive_is_a_platform_of_the_plugin() {
        let archives = read(&sums(&[
            "adit-x86_64-unknown-linux-musl-v0.1.0.tar.gz",
            "adit-x86_64-unknown-linux-musl-v0.1.0.cdx.json",
            "adit-aarch64-apple-darwin-v0.1.0.tar.gz",
            "adit_0.1.0-1_amd64.deb",
        ]))
        .unwrap();
        let manifest = krew(&archives, URL);
        for (system, processor, target) in
            [("linux", "amd64", "x86_64-unknown-linux-musl"), ("darwin", "arm64", "aarch64-apple-darwin")]
        {
            let platform = format!(
                "  - selector:\n      matchLabels:\n        os: {system}\n        arch: {processor}\n    \
                 uri: {URL}/adit-{target}-v0.1.0.tar.gz\n    sha256: {}\n    bin: adit\n    files:\n    - \
                 from: adit-{target}-v0.1.0/adit\n      to: .\n",
                "ab".repeat(32)
            );
            assert!(manifest.contains(&platform), "{platform}\n{manifest}");
        }
        assert_eq!(manifest.matches("selector").count(), 2);
    }

    #[test]
    fn a_formula_has_the_systems_that_there_are() {
        let archives = read(&sums(&["adit-aarch64-unknown-linux-musl-v0.1.0.tar.gz"])).unwrap();
        let formula = homebrew(&archives, URL);
        assert!(formula.contains("on_linux do\n    on_arm do\n") && !formula.contains("on_macos"), "{formula}");
    }

    #[test]
    fn what_is_no_list_of_archives_is_refused() {
        assert_eq!(read("x"), Err(SumsError::Line(1)));
        assert_eq!(read(&format!("\n{}x  adit.tar.gz", "ab".repeat(31))), Err(SumsError::Line(2)));
        for file in ["adit.tar.gz", "adit-sparc-linux-v1.tar.gz", "adit-x86_64-freebsd-v1.tar.gz"] {
            assert_eq!(read(&sums(&[file])), Err(SumsError::Name(file.to_owned())));
        }
    }
}
