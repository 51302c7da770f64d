//! Atomic replacement of files: other programs read the old content or the new one, never a part.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Writes a file with the permissions `mode`, less those of the umask. Replaces a file or a symlink at this path.
///
/// # Errors
/// A file cannot be created in the folder, or written. The old file is unchanged then.
pub fn write(file: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    replace(file, content, mode, None)
}

/// Replaces the content of a file and keeps its permissions. Follows symlinks.
///
/// # Errors
/// The file does not exist, or as for [`write()`].
pub fn rewrite(file: &Path, content: &[u8]) -> io::Result<()> {
    let file = file.canonicalize()?;
    let permissions = fs::metadata(&file)?.permissions();
    replace(&file, content, permissions.mode() & 0o700, Some(permissions))
}

fn replace(file: &Path, content: &[u8], mode: u32, permissions: Option<Permissions>) -> io::Result<()> {
    // Several processes may write at the same time, so each has its own temporary file.
    let mut name = std::ffi::OsString::from(".");
    name.push(file.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    let temporary = file.with_file_name(name);
    let _ = fs::remove_file(&temporary);
    let written = (|| {
        // `create_new` does not follow a symlink that someone else has put there.
        let mut open = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        open.write_all(content)?;
        if let Some(permissions) = permissions {
            open.set_permissions(permissions)?;
        }
        open.sync_all()?;
        fs::rename(&temporary, file)
    })();
    written.inspect_err(|_| _ = fs::remove_file(&temporary))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(file: &Path) -> u32 {
        fs::metadata(file).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_file_is_replaced_with_its_permissions_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        write(&file, b"one", 0o600).unwrap();
        assert_eq!(mode(&file), 0o600);
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        symlink("file", &link).unwrap();
        rewrite(&link, b"two").unwrap();
        assert_eq!((fs::read_to_string(&file).unwrap(), mode(&file)), ("two".to_owned(), 0o640));
        assert!(link.is_symlink(), "a symlink is followed");
        write(&link, b"three", 0o600).unwrap();
        assert!(!link.is_symlink(), "a symlink is replaced");
        assert_eq!(fs::read_to_string(&file).unwrap(), "two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_failed_write_leaves_the_folder_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let occupied = folder.path().join("folder");
        fs::create_dir_all(occupied.join("x")).unwrap();
        assert!(write(&occupied, b"one", 0o600).is_err());
        assert!(rewrite(&folder.path().join("none"), b"one").is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
