//! Finds a program in `PATH`.

use std::{
    env,
    ffi::OsStr,
    io,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
};

use crate::config::shell::quoted;

/// Exit codes of shells (POSIX.1-2017, Shell Command Language, 2.8.2).
pub const NOT_EXECUTABLE: u8 = 126;
pub const NOT_FOUND: u8 = 127;

/// Error of a program that cannot be started.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    #[error("{0:?} was not found in PATH")]
    NotInPath(String),
    #[error("{0:?} does not exist")]
    NotThere(String),
    #[error("{0:?} is a folder")]
    Folder(String),
    #[error("{0:?} is not executable")]
    NotExecutable(String),
}

impl ProgramError {
    pub fn code(&self) -> u8 {
        match self {
            Self::NotInPath(_) | Self::NotThere(_) => NOT_FOUND,
            Self::Folder(_) | Self::NotExecutable(_) => NOT_EXECUTABLE,
        }
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotExecutable(path) => Some(format!("chmod +x {}", quoted(path))),
            _ => None,
        }
    }
}

/// Returns the path of a program: unchanged if it has a slash, else the first executable file in `path`.
///
/// # Errors
/// The program does not exist, or is not executable.
pub fn find(program: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, ProgramError> {
    let shown = || program.to_string_lossy().into_owned();
    if program.as_bytes().contains(&b'/') {
        return check(Path::new(program)).map(|()| PathBuf::from(program)).map_err(|problem| match problem {
            Problem::NotThere => ProgramError::NotThere(shown()),
            Problem::Folder => ProgramError::Folder(shown()),
            Problem::NotExecutable => ProgramError::NotExecutable(shown()),
        });
    }
    let mut problem = ProgramError::NotInPath(shown());
    let folders = path.map(env::split_paths).into_iter().flatten();
    for candidate in folders.filter(|_| !program.is_empty()).map(|folder| folder.join(program)) {
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Problem::NotExecutable) => problem = ProgramError::NotExecutable(candidate.display().to_string()),
            Err(Problem::NotThere | Problem::Folder) => {}
        }
    }
    Err(problem)
}

enum Problem {
    NotThere,
    Folder,
    NotExecutable,
}

fn check(path: &Path) -> Result<(), Problem> {
    let file = path.metadata().map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => Problem::NotExecutable,
        _ => Problem::NotThere,
    })?;
    if file.is_dir() {
        return Err(Problem::Folder);
    }
    if file.permissions().mode() & 0o111 == 0 { Err(Problem::NotExecutable) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let make = |folder: &tempfile::TempDir, name: &str, mode: u32| {
            let path = folder.path().join(name);
            fs::write(&path, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        make(&first, "both", 0o644);
        let both = make(&second, "both", 0o755);
        let plain = make(&first, "plain", 0o644);
        fs::create_dir(first.path().join("folder")).unwrap();
        let path = env::join_paths([first.path(), second.path()]).unwrap();
        let find = |program: &str| find(OsStr::new(program), Some(&path));
        assert_eq!(find("both"), Ok(both.clone()));
        assert_eq!(find(both.to_str().unwrap()), Ok(both));
        let code = |program: &str| find(program).unwrap_err().code();
        assert_eq!(code("plain"), 126);
        assert_eq!(code(plain.to_str().unwrap()), 126);
        assert_eq!(code(first.path().to_str().unwrap()), 126);
        assert_eq!(code("folder"), 127);
        assert_eq!(code("nothing"), 127);
        assert_eq!(code("./nothing"), 127);
        assert_eq!(code(""), 127);
    }
}
