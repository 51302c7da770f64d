//! Follows the configuration file.
//!
//! Editors replace files, ConfigMaps swap symlinks above them, and many events name neither. So adit watches the folder of the
//! file, and that of a symlink's target. Any event means "look again" after a pause; only a changed content is a change.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher, event::ModifyKind};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, spawn_blocking},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{Config, validate};

/// Pause after an event: an editor's save causes several. Events within this time are one change.
const DEBOUNCE: Duration = Duration::from_millis(500);

/// Interval of polling, if the system provides no file events.
const POLL: Duration = Duration::from_secs(2);

/// Time limit of a read. After it, the file system counts as hanging.
const READ_WITHIN: Duration = Duration::from_secs(5);

/// Result of reading the file again.
#[derive(Clone, Debug)]
pub struct Reload {
    /// The error is text for people.
    pub config: Result<Arc<Config>, String>,
    /// True if the user requested it with a signal; the file may not have changed.
    pub asked_for: bool,
}

/// Watches `file` until the receiver of `changes` is dropped. A message on `look_again` (SIGHUP) makes it read at once.
///
/// Sends the first content too, because it may have changed since adit loaded it. Then it sends each changed content once, and
/// the current content on request. A deleted file is not a change. A file that had content and is empty now is a mistake: it was
/// truncated, or a mount is missing. `{}` asks for the defaults.
pub async fn run(file: PathBuf, changes: watch::Sender<Option<Reload>>, mut look_again: mpsc::Receiver<()>) {
    let mut content: Option<Vec<u8>> = None;
    let (events_tx, mut events) = mpsc::channel(1);
    let mut watcher = Folders::new(events_tx);
    let (mut is_first, mut is_watching) = (true, false);
    let mut is_emptied = false;
    let mut had_content = false;
    let mut reader = Reader::default();
    let (mut unread, mut looks_again) = (None::<String>, false);
    loop {
        let mut asked_for = false;
        tokio::select! {
            () = std::future::ready(()), if std::mem::take(&mut is_first) => {}
            Some(()) = events.recv(), if is_watching => tokio::select! {
                () = settle(&mut events) => {}
                Some(()) = look_again.recv() => asked_for = true,
            },
            Some(()) = look_again.recv() => asked_for = true,
            () = sleep(POLL), if !is_watching || looks_again => {}
            () = changes.closed() => return,
        }
        // Before the read: a change after it causes an event.
        is_watching = watcher.as_mut().is_some_and(|watcher| watcher.follow(std::slice::from_ref(&file)));
        let now = match reader.read(&file).await {
            Ok(now) => now,
            Err(error) => {
                let (kind, reason) = (error.kind(), error.to_string());
                // No event tells that a hanging file system answers again.
                looks_again = kind == io::ErrorKind::TimedOut;
                // Events continue and would repeat the same warning.
                if kind != io::ErrorKind::NotFound && (asked_for || unread.as_ref() != Some(&reason)) {
                    warn!(file = %file.display(), error = reason, "config not read");
                }
                unread = Some(reason);
                continue;
            }
        };
        (unread, looks_again) = (None, false);
        let is_empty = now.trim_ascii().is_empty();
        if is_empty && content.as_ref().is_some_and(|content| !content.trim_ascii().is_empty()) && !is_emptied {
            // The file was truncated and is about to be written; an editor may take a while.
            is_emptied = true;
            sleep(DEBOUNCE).await;
            is_first = true;
            continue;
        }
        is_emptied = false;
        if content.as_ref() == Some(&now) && !asked_for {
            debug!("the configuration file was touched, not changed");
            continue;
        }
        let config = match is_empty && had_content {
            true => Err(emptied(&file)),
            false => validate::parse(&file, &now).map(Arc::new).map_err(|error| error.to_string()),
        };
        had_content |= !is_empty;
        content = Some(now);
        changes.send_replace(Some(Reload { config, asked_for }));
    }
}

/// Reads a file in a blocking thread, so that a hanging file system delays nothing else.
#[derive(Default)]
struct Reader {
    /// A read that is past its time limit. There is never more than one.
    late: Option<JoinHandle<io::Result<Vec<u8>>>>,
}

impl Reader {
    /// Reads the file.
    ///
    /// # Errors
    /// The file cannot be read, is not a regular file, or its file system does not answer.
    async fn read(&mut self, file: &Path) -> io::Result<Vec<u8>> {
        if let Some(mut late) = self.late.take()
            && timeout(READ_WITHIN, &mut late).await.is_err()
        {
            return Err(self.is_late(late));
        }
        // The late read's result is dropped, because it may be outdated.
        let file = file.to_owned();
        let mut reading = spawn_blocking(move || regular(&file));
        match timeout(READ_WITHIN, &mut reading).await {
            Ok(read) => read.unwrap_or_else(|error| Err(io::Error::other(error))),
            Err(_) => Err(self.is_late(reading)),
        }
    }

    fn is_late(&mut self, reading: JoinHandle<io::Result<Vec<u8>>>) -> io::Error {
        self.late = Some(reading);
        io::Error::new(io::ErrorKind::TimedOut, "its file system does not answer")
    }
}

/// Reads a regular file. A pipe gives its content only once, at the start; a second read would be empty, or block.
fn regular(file: &Path) -> io::Result<Vec<u8>> {
    match fs::metadata(file)?.is_file() {
        true => fs::read(file),
        false => Err(io::Error::other("it is not a regular file, so that changes of it are not followed")),
    }
}

fn emptied(file: &Path) -> String {
    format!("{}: the file is empty, and it was not before\nhint: write {{}} into it for the defaults\n", file.display())
}

/// Waits until events pause for [`DEBOUNCE`], at most six times that long.
async fn settle(events: &mut mpsc::Receiver<()>) {
    let until_quiet = async { while timeout(DEBOUNCE, events.recv()).await.is_ok_and(|event| event.is_some()) {} };
    // Events after this limit belong to the next change.
    let _ = timeout(DEBOUNCE * 6, until_quiet).await;
}

/// Sends a message each time that one of `files` may have changed, until the receiver is dropped. For files that other code
/// reads: kubeconfigs.
pub async fn touched(files: Vec<PathBuf>, changes: mpsc::Sender<()>) {
    let files: Arc<[PathBuf]> = files.into();
    // In a blocking thread, because a file system may hang.
    let look = async |mut watcher: Option<Folders>| {
        let files = files.clone();
        let looking = spawn_blocking(move || {
            // Before the look at the files: a change after it causes an event.
            let is_watching = watcher.as_mut().is_some_and(|watcher| watcher.follow(&files));
            let state = |file: &PathBuf| file.metadata().and_then(|file| Ok((file.modified()?, file.len()))).ok();
            let state: Vec<_> = files.iter().map(state).collect();
            (watcher, is_watching, state)
        });
        looking.await.ok()
    };
    let (events_tx, mut events) = mpsc::channel(1);
    let Some((mut watcher, mut is_watching, mut before)) = look(Folders::new(events_tx)).await else { return };
    loop {
        tokio::select! {
            Some(()) = events.recv(), if is_watching => settle(&mut events).await,
            () = sleep(POLL), if !is_watching => {}
            () = changes.closed() => return,
        }
        let now;
        tokio::select! {
            looked = look(watcher) => match looked {
                Some(looked) => (watcher, is_watching, now) = looked,
                None => return,
            },
            () = changes.closed() => return,
        }
        if now != before {
            before = now;
            if changes.send(()).await.is_err() {
                return;
            }
        }
    }
}

/// Watches of the folders that the content of files depends on.
struct Folders {
    watcher: RecommendedWatcher,
    /// Watched folders. The paths are canonical, so a folder has one watch, however it is spelled.
    folders: Vec<PathBuf>,
    /// Whether something was deleted or renamed. A folder loses its watch then, and another folder may have its name.
    is_stale: Arc<AtomicBool>,
}

impl Folders {
    /// Returns `None` if this system has no file events, or no more watches to give.
    fn new(events: mpsc::Sender<()>) -> Option<Self> {
        let is_stale = Arc::new(AtomicBool::new(false));
        let stale = is_stale.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let kind = event.map_or(EventKind::Other, |event| event.kind);
            if matches!(kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) | EventKind::Other) {
                stale.store(true, Ordering::Relaxed);
            }
            // adit's own reads are events too, and would cause endless reads.
            if !kind.is_access() {
                // If the channel is full, a waiting event already says the same.
                let _ = events.try_send(());
            }
        });
        watcher.inspect_err(|error| debug!(%error, "no file events: polling")).ok().map(|watcher| Self {
            watcher,
            folders: Vec::new(),
            is_stale,
        })
    }

    /// Watches the folders of the files, and those of their symlinks' current targets. Returns whether each change from now on
    /// causes an event; if not, the files have to be polled.
    fn follow(&mut self, files: &[PathBuf]) -> bool {
        let is_stale = self.is_stale.swap(false, Ordering::Relaxed);
        let Some(folders) = folders(files) else { return self.poll() };
        if folders == self.folders && !is_stale {
            return true;
        }
        for gone in self.folders.iter().filter(|folder| is_stale || !folders.contains(folder)) {
            // A deleted folder has lost its watch already.
            let _ = self.watcher.unwatch(gone);
        }
        for new in folders.iter().filter(|folder| is_stale || !self.folders.contains(folder)) {
            if let Err(error) = self.watcher.watch(new, RecursiveMode::NonRecursive) {
                debug!(folder = %new.display(), %error, "folder not watched: polling");
                return self.poll();
            }
        }
        self.folders = folders;
        true
    }

    /// Drops all watches, so that the next call of `follow` starts over.
    fn poll(&mut self) -> bool {
        for folder in std::mem::take(&mut self.folders) {
            let _ = self.watcher.unwatch(&folder);
        }
        false
    }
}

/// Returns the folders that the content of the files depends on. `None`: one of them does not exist.
fn folders(files: &[PathBuf]) -> Option<Vec<PathBuf>> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for file in files {
        let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // A file that does not exist has no target yet.
        let real = fs::canonicalize(file).ok();
        let of_real = real.as_deref().and_then(Path::parent).map(Path::to_owned);
        for folder in [Some(fs::canonicalize(parent).ok()?), of_real].into_iter().flatten() {
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
    }
    Some(folders)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Watched {
        folder: tempfile::TempDir,
        changes: watch::Receiver<Option<Reload>>,
        look_again: mpsc::Sender<()>,
    }

    impl Watched {
        async fn start(prepare: impl FnOnce(&Path)) -> Self {
            let folder = tempfile::tempdir().unwrap();
            prepare(folder.path());
            let (changes_tx, changes) = watch::channel(None);
            let (look_again_tx, look_again) = mpsc::channel(1);
            tokio::spawn(run(folder.path().join("config.yaml"), changes_tx, look_again));
            let mut watched = Self { folder, changes, look_again: look_again_tx };
            if watched.file().exists() {
                watched.next().await.unwrap();
            } else {
                sleep(Duration::from_millis(200)).await;
            }
            watched
        }

        async fn next(&mut self) -> Result<Arc<Config>, String> {
            timeout(Duration::from_secs(10), self.changes.changed()).await.expect("a change within 10 s").unwrap();
            self.changes.borrow_and_update().clone().unwrap().config
        }

        fn file(&self) -> PathBuf {
            self.folder.path().join("config.yaml")
        }
    }

    #[tokio::test]
    async fn a_file_that_is_replaced_or_written_is_read_each_time() {
        let mut watched =
            Watched::start(|folder| fs::write(folder.join("config.yaml"), "verbose: false\n").unwrap()).await;
        for round in 0..2 {
            let new = watched.folder.path().join("new");
            fs::write(&new, format!("verbose: true # {round}\n")).unwrap();
            fs::rename(&new, watched.file()).unwrap();
            assert!(watched.next().await.unwrap().verbose);
            fs::write(watched.file(), format!("verbose: false # {round}\n")).unwrap();
            assert!(!watched.next().await.unwrap().verbose);
        }
        fs::write(watched.file(), "verbose: perhaps\n").unwrap();
        assert!(watched.next().await.unwrap_err().contains("verbose"));
    }

    #[tokio::test]
    async fn a_file_that_somebody_else_reads_is_told_of_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        fs::write(&first, "one").unwrap();
        let (changes_tx, mut changes) = mpsc::channel(1);
        let watching = tokio::spawn(touched(vec![first.clone(), second.clone()], changes_tx));
        // `touched` takes the first state before it watches.
        sleep(Duration::from_millis(200)).await;
        for (file, text) in [(&first, "other"), (&second, "a new file"), (&first, "once more")] {
            fs::write(file, text).unwrap();
            timeout(Duration::from_secs(30), changes.recv())
                .await
                .expect("a change within 30 s")
                .expect("the watch goes on");
        }
        drop(changes);
        timeout(Duration::from_secs(30), watching).await.expect("it ends with its receiver").unwrap();
    }

    #[tokio::test]
    async fn a_swap_of_symlinks_as_configmaps_do_it_is_a_change() {
        let mut watched = Watched::start(|folder| {
            for (version, verbose) in [("v1", false), ("v2", true)] {
                fs::create_dir(folder.join(version)).unwrap();
                fs::write(folder.join(version).join("config.yaml"), format!("verbose: {verbose}\n")).unwrap();
            }
            symlink("v1", folder.join("..data")).unwrap();
            symlink("..data/config.yaml", folder.join("config.yaml")).unwrap();
        })
        .await;
        symlink("v2", watched.folder.path().join("..data_tmp")).unwrap();
        fs::rename(watched.folder.path().join("..data_tmp"), watched.folder.path().join("..data")).unwrap();
        assert!(watched.next().await.unwrap().verbose);
    }

    #[tokio::test]
    async fn a_file_behind_a_link_to_another_folder_is_followed_where_it_is() {
        let real = tempfile::tempdir().unwrap();
        let file = real.path().join("real.yaml");
        fs::write(&file, "verbose: false\n").unwrap();
        let mut watched = Watched::start(|folder| symlink(&file, folder.join("config.yaml")).unwrap()).await;
        fs::write(&file, "verbose: true\n").unwrap();
        assert!(watched.next().await.unwrap().verbose);
    }

    #[tokio::test]
    async fn a_file_whose_folder_is_missing_is_told_of_once_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let (changes_tx, mut changes) = mpsc::channel(1);
        tokio::spawn(touched(vec![missing.join("config")], changes_tx));
        sleep(Duration::from_millis(200)).await;
        fs::create_dir(&missing).unwrap();
        for text in ["one", "other"] {
            fs::write(missing.join("config"), text).unwrap();
            timeout(Duration::from_secs(10), changes.recv()).await.expect("a change within 10 s").unwrap();
        }
    }

    #[tokio::test]
    async fn a_file_that_is_emptied_before_it_is_written_is_no_empty_file() {
        let mut watched =
            Watched::start(|folder| fs::write(folder.join("config.yaml"), "verbose: false\n").unwrap()).await;
        fs::write(watched.file(), "").unwrap();
        sleep(Duration::from_millis(700)).await;
        fs::write(watched.file(), "verbose: true\n").unwrap();
        assert!(watched.next().await.unwrap().verbose, "the first change that is told is the new content");
    }

    #[tokio::test]
    async fn a_file_that_stays_empty_is_a_mistake_and_braces_are_the_defaults() {
        let mut watched =
            Watched::start(|folder| fs::write(folder.join("config.yaml"), "verbose: true\n").unwrap()).await;
        for blank in ["", " \n\n", ""] {
            fs::write(watched.file(), blank).unwrap();
            let error = watched.next().await.unwrap_err();
            assert!(error.contains("the file is empty") && error.contains("{}"), "{error}");
        }
        watched.look_again.send(()).await.unwrap();
        watched.next().await.unwrap_err();
        fs::write(watched.file(), "{}\n").unwrap();
        assert!(!watched.next().await.unwrap().verbose);
        fs::write(watched.file(), "").unwrap();
        watched.next().await.unwrap_err();
    }

    fn pipe(path: &Path) {
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    }

    #[tokio::test]
    async fn a_pipe_holds_nothing_up_and_changes_nothing() {
        let mut watched =
            Watched::start(|folder| fs::write(folder.join("config.yaml"), "verbose: true\n").unwrap()).await;
        let (new, other) = (watched.folder.path().join("new"), watched.folder.path().join("other"));
        pipe(&new);
        fs::rename(&new, watched.file()).unwrap();
        assert!(timeout(DEBOUNCE * 3, watched.changes.changed()).await.is_err());
        watched.look_again.send(()).await.unwrap();
        assert!(timeout(DEBOUNCE, watched.changes.changed()).await.is_err());
        fs::write(&other, "verbose: false\n").unwrap();
        fs::rename(&other, watched.file()).unwrap();
        assert!(!watched.next().await.unwrap().verbose);
    }

    #[tokio::test]
    async fn a_configuration_from_a_pipe_stays() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.yaml");
        pipe(&file);
        let (changes_tx, mut changes) = watch::channel(None);
        let (_look_again, look_again) = mpsc::channel(1);
        tokio::spawn(run(file, changes_tx, look_again));
        assert!(timeout(DEBOUNCE * 2, changes.changed()).await.is_err(), "the second read would be empty");
    }

    #[tokio::test]
    async fn a_file_that_was_empty_from_the_start_may_stay_so() {
        let mut watched = Watched::start(|folder| fs::write(folder.join("config.yaml"), "").unwrap()).await;
        watched.look_again.send(()).await.unwrap();
        watched.next().await.unwrap();
    }

    #[tokio::test]
    async fn a_file_that_was_gone_for_a_while_is_followed_whatever_its_folder_is_called() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let name = folder.path().file_name().unwrap();
        let linked = tempfile::tempdir().unwrap();
        symlink(folder.path().canonicalize().unwrap(), linked.path().join("link")).unwrap();
        let file = folder.path().join("config.yaml");
        fs::write(&file, "verbose: false\n").unwrap();
        let mut watches = Vec::new();
        for called in [Path::new(name).to_owned(), Path::new(".").join(name).join("."), linked.path().join("link")] {
            let (changes_tx, mut changes) = watch::channel(None);
            let (look_again, asked) = mpsc::channel(1);
            tokio::spawn(run(called.join("config.yaml"), changes_tx, asked));
            timeout(Duration::from_secs(10), changes.changed()).await.expect("it is read first").unwrap();
            watches.push((called, changes, look_again));
        }
        for round in 0..2 {
            fs::remove_file(&file).unwrap();
            sleep(DEBOUNCE * 2).await;
            fs::write(&file, format!("verbose: true # {round}\n")).unwrap();
            for (called, changes, _) in &mut watches {
                let changed = timeout(Duration::from_secs(10), changes.changed()).await;
                changed.unwrap_or_else(|_| panic!("{}: nothing in round {round}", called.display())).unwrap();
                assert!(changes.borrow_and_update().clone().unwrap().config.unwrap().verbose);
            }
        }
    }

    #[tokio::test]
    async fn a_folder_that_is_replaced_is_followed() {
        let outer = tempfile::tempdir().unwrap();
        let (folder, old, new) = (outer.path().join("conf"), outer.path().join("old"), outer.path().join("new"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("config.yaml"), "verbose: false\n").unwrap();
        let (changes_tx, mut changes) = watch::channel(None);
        let (_look_again, asked) = mpsc::channel(1);
        tokio::spawn(run(folder.join("config.yaml"), changes_tx, asked));
        let mut next = async || {
            timeout(Duration::from_secs(10), changes.changed()).await.expect("a change within 10 s").unwrap();
            changes.borrow_and_update().clone().unwrap().config.unwrap().verbose
        };
        assert!(!next().await);
        fs::create_dir(&new).unwrap();
        fs::write(new.join("config.yaml"), "verbose: true\n").unwrap();
        fs::rename(&folder, &old).unwrap();
        fs::rename(&new, &folder).unwrap();
        assert!(next().await);
        fs::write(folder.join("config.yaml"), "verbose: false\n").unwrap();
        assert!(!next().await, "the new folder is watched");
        fs::remove_dir_all(&folder).unwrap();
        sleep(DEBOUNCE * 2).await;
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("config.yaml"), "verbose: true\n").unwrap();
        assert!(next().await);
        fs::write(folder.join("config.yaml"), "verbose: false\n").unwrap();
        assert!(!next().await, "and so is one that was created again");
    }

    #[tokio::test]
    async fn a_touch_is_no_change_and_a_new_file_is_one() {
        let mut watched = Watched::start(|_| {}).await;
        fs::write(watched.file(), "verbose: true\n").unwrap();
        assert!(watched.next().await.unwrap().verbose);
        fs::write(watched.file(), "verbose: true\n").unwrap();
        assert!(timeout(Duration::from_millis(1500), watched.changes.changed()).await.is_err());
        watched.look_again.send(()).await.unwrap();
        watched.next().await.unwrap();
        assert!(watched.changes.borrow().as_ref().unwrap().asked_for, "what is asked for is told in any case");
    }

    #[tokio::test]
    async fn who_asks_does_not_wait_until_the_file_is_at_rest() {
        let mut watched =
            Watched::start(|folder| fs::write(folder.join("config.yaml"), "verbose: false\n").unwrap()).await;
        fs::write(watched.file(), "verbose: true\n").unwrap();
        sleep(DEBOUNCE / 5).await;
        watched.look_again.send(()).await.unwrap();
        assert!(watched.next().await.unwrap().verbose);
        assert!(watched.changes.borrow().as_ref().unwrap().asked_for);
    }
}
