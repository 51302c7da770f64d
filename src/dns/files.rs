//! Files that are adit's as a whole: written where there is none, and removed with the folder that was made for them.

use std::{fs, io, path::Path};

/// The first line of each: a file without it is somebody else's.
const OURS: &str = "# Written by 'adit dns install', and removed by 'adit dns uninstall'.";

/// The second line where the folder is ours too.
const WITH_FOLDER: &str = "# Its folder too.";

/// Content at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    /// Ours, with this below the first lines.
    Ours(String),
    Others,
}

pub fn find(file: &Path) -> io::Result<Found> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    };
    let Some(rest) = text.strip_prefix(OURS) else { return Ok(Found::Others) };
    let rest = rest.trim_start_matches('\n');
    Ok(Found::Ours(rest.strip_prefix(WITH_FOLDER).unwrap_or(rest).trim_start_matches('\n').to_owned()))
}

/// Writes a file whole, and its folder where there is none. Somebody else's is left alone.
///
/// # Errors
/// Somebody else has it, or the system does not allow it.
pub fn write(file: &Path, text: &str) -> io::Result<()> {
    if find(file)? == Found::Others {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is there, and adit has not written it"));
    }
    let folder = file.parent().unwrap_or(file);
    let has_folder = folder.exists() && !is_with_folder(file);
    fs::create_dir_all(folder)?;
    let mark = if has_folder { String::new() } else { format!("{WITH_FOLDER}\n") };
    let beside = file.with_extension("new");
    fs::write(&beside, format!("{OURS}\n{mark}{text}"))?;
    fs::rename(&beside, file)
}

/// Removes a file that is ours, and its folder where that was made for it and has nothing else in it.
///
/// # Errors
/// The system does not allow it.
pub fn remove(file: &Path) -> io::Result<()> {
    if !matches!(find(file)?, Found::Ours(_)) {
        return Ok(());
    }
    let with_folder = is_with_folder(file);
    fs::remove_file(file)?;
    let Some(folder) = file.parent().filter(|_| with_folder) else { return Ok(()) };
    // Somebody else may have put something there: then the next of ours has the mark.
    let next = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let next = next.into_iter().find(|path| matches!(find(path), Ok(Found::Ours(_))));
    match (next, fs::remove_dir(folder)) {
        (Some(next), Err(_)) => mark(&next),
        (None, Err(error)) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        (_, removed) => removed,
    }
}

fn is_with_folder(file: &Path) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.lines().nth(1) == Some(WITH_FOLDER))
}

fn mark(file: &Path) -> io::Result<()> {
    let text = fs::read_to_string(file)?;
    match is_with_folder(file) {
        true => Ok(()),
        false => fs::write(file, text.replacen(OURS, &format!("{OURS}\n{WITH_FOLDER}"), 1)),
    }
}
