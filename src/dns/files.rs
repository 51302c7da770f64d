//! Files that belong to adit as a whole: written if there is none, and deleted together with the folder that was created for
//! them.

use std::{fs, io, path::Path};

use crate::atomic_file;

/// First line of each file. A file without it is not adit's.
const OURS: &str = "# Written by 'adit dns install', and removed by 'adit dns uninstall'.";

/// Second line, if adit has created the folder too.
const WITH_FOLDER: &str = "# Its folder too.";

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    /// A file of adit, with this text behind the first lines.
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

/// Writes a file as a whole, and creates its folder. Keeps a file that is not adit's.
///
/// # Errors
/// The file is not adit's, or the system denies it.
pub fn write(file: &Path, text: &str) -> io::Result<()> {
    if find(file)? == Found::Others {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is there, and adit has not written it"));
    }
    let folder = file.parent().unwrap_or(file);
    let has_folder = folder.exists() && !is_with_folder(file);
    fs::create_dir_all(folder)?;
    let mark = if has_folder { String::new() } else { format!("{WITH_FOLDER}\n") };
    atomic_file::write(file, format!("{OURS}\n{mark}{text}").as_bytes(), 0o644)
}

/// Deletes a file of adit, and its folder if adit has created it and it is empty.
///
/// # Errors
/// The system denies it.
pub fn remove(file: &Path) -> io::Result<()> {
    if !matches!(find(file)?, Found::Ours(_)) {
        return Ok(());
    }
    let with_folder = is_with_folder(file);
    fs::remove_file(file)?;
    let Some(folder) = file.parent().filter(|_| with_folder) else { return Ok(()) };
    // If the folder is not empty, move the mark to another file of adit, which deletes the folder later.
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
