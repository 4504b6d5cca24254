//! Notices what others do with the file, on a thread that does nothing else.
//!
//! ```text
//! a look ─┬─ something goes on ─▶ told, and the next look after a pause
//!         └─ rest ─▶ sleeps until the bell rings (inotify) ─▶ a moment ─▶ a look
//!                                 nothing for some seconds ─▶ told all the same
//! no bell here: a look every `foreign_poll` instead
//! ```
//!
//! Parts: [`Watch`], the thread and its end; [`Bell`], what the kernel says about the files.
//!
//! The kernel tells of our own writes as well, and at rest alone is anybody woken by them: while something goes on nobody
//! listens, and a thousand commits are one look. It tells of a write to the log, which is before the commit is to be seen:
//! hence more looks follow the first. A timer of the writer's own would cost several times as much, as every turn of an
//! actor's runtime does.

#[cfg(target_os = "linux")]
use std::fs::File;
#[cfg(target_os = "linux")]
use std::io::{ErrorKind, Read as _};
use std::io::{PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
#[cfg(target_os = "linux")]
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::upkeep::spawn;
use super::{Result, StoreError};

/// Between two looks while something goes on, where there is a bell.
const PAUSE: Duration = Duration::from_millis(50);

/// From the ring to the look, which is after the commit then, mostly; where it is not, more looks follow quickly.
const MOMENT: Duration = Duration::from_millis(5);

/// Without any sign the writer looks so often. A disk that takes seconds for the fsync of a commit makes that commit seen
/// after its write is forgotten; a folder far above the file may have been moved.
const ANYWAY: Duration = Duration::from_secs(5);

/// A whole look is rarely needed, where no bell asks for it.
const WHOLE_LOOK: Duration = Duration::from_secs(1);

/// The thread. It ends with this.
pub(super) struct Watch {
    /// Nothing is ever sent: its end is the thread's.
    alive: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// `look` says whether something goes on; it is told whether a whole look is wanted.
    pub(super) fn start(
        bell: Option<Bell>,
        every: Duration,
        look: impl FnMut(bool) -> bool + Send + 'static,
        tell: impl Fn() + Send + 'static,
    ) -> Result<Self> {
        let (ended, alive) = std::io::pipe()
            .map_err(|error| StoreError::Io(format!("the file cannot be watched: {error}")))?;
        let sleeper = Sleeper { ended, bell };
        let thread = spawn("tidewater-watch", move || work(&sleeper, every, look, tell))?;
        Ok(Self { alive: Some(alive), thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.alive.take();
        // A panic of its own is not this one's.
        self.thread.take().map(JoinHandle::join);
    }
}

fn work(sleeper: &Sleeper, every: Duration, mut look: impl FnMut(bool) -> bool, tell: impl Fn()) {
    let longest = if sleeper.bell.is_some() { every.min(PAUSE) } else { every };
    let mut pause = longest;
    let rest = every.max(ANYWAY);
    let (mut told, mut looked) = (Instant::now(), None::<Instant>);
    loop {
        // Before the look: what rings from now on is for the next one.
        let rang = sleeper.bell.as_ref().is_some_and(Bell::rang);
        let whole = rang || looked.is_none_or(|looked| looked.elapsed() >= WHOLE_LOOK);
        if whole {
            looked = Some(Instant::now());
        }
        let goes_on = look(whole);
        if goes_on || told.elapsed() >= rest {
            tell();
            told = Instant::now();
        }
        let mut woken = match &sleeper.bell {
            Some(bell) if !goes_on => sleeper.sleep(rest, Some(bell)),
            _ => {
                let now = pause;
                pause = longest.min(pause * 2);
                sleeper.sleep(now, None)
            }
        };
        if woken == Woken::Bell {
            pause = longest.min(MOMENT);
            woken = sleeper.sleep(pause, None);
        }
        if woken == Woken::End {
            return;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    Time,
    Bell,
    End,
}

struct Sleeper {
    ended: PipeReader,
    bell: Option<Bell>,
}

impl Sleeper {
    /// `until` may wake it earlier.
    fn sleep(&self, time: Duration, until: Option<&Bell>) -> Woken {
        let ended = self.ended.as_fd();
        let bell = until.map_or(ended, AsFd::as_fd);
        let mut both = [ended, bell].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        // A time that cannot be said is for ever. After a signal there is an early look, which does no harm.
        let woken = poll(&mut both, Timespec::try_from(time).ok().as_ref()).unwrap_or(0);
        match both.map(|fd| !fd.revents().is_empty()) {
            _ if woken == 0 => Woken::Time,
            [true, _] => Woken::End,
            [false, _] => Woken::Bell,
        }
    }
}

/// Rings when one of the files is written, or has another place.
#[cfg(target_os = "linux")]
pub(super) struct Bell(File);

#[cfg(target_os = "linux")]
impl Bell {
    /// `log` is what is written; of the other files only their place is told.
    ///
    /// # Errors
    /// Where nobody tells: a file system of which that is not known, a file that is not there, too many watches.
    pub(super) fn new<'a>(log: &Path, others: impl IntoIterator<Item = &'a Path>) -> std::io::Result<Self> {
        if !TELLING.contains(&(rustix::fs::statfs(log)?.f_type as u32)) {
            let why = "this file system may not tell of every write";
            return Err(std::io::Error::new(ErrorKind::Unsupported, why));
        }
        let bell = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        // A name that is taken away from an open file is a change of its attributes.
        let place = WatchFlags::ATTRIB | WatchFlags::MOVE_SELF | WatchFlags::DELETE_SELF;
        inotify::add_watch(&bell, log, place | WatchFlags::MODIFY)?;
        for path in others {
            inotify::add_watch(&bell, path, place | WatchFlags::MASK_ADD)?;
            if let Some(folder) = path.parent() {
                inotify::add_watch(&bell, folder, WatchFlags::MOVE_SELF | WatchFlags::MASK_ADD)?;
            }
        }
        Ok(Self(bell.into()))
    }

    /// Whether it rang since the last call. What it was is not asked, nor whether some of it was lost: a look finds out.
    fn rang(&self) -> bool {
        let (mut rang, mut events) = (false, [0; 4096]);
        while matches!((&self.0).read(&mut events), Ok(1..)) {
            rang = true;
        }
        rang
    }
}

/// The file systems of one machine's own disks and memory, by their numbers in `statfs`: whoever writes there does so
/// through the kernel that tells. In order: ext2 to ext4, XFS, Btrfs, F2FS, bcachefs, ZFS, tmpfs, overlayfs.
#[cfg(target_os = "linux")]
const TELLING: [u32; 8] =
    [0xEF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010, 0xCA45_1A4E, 0x2FC1_2FC1, 0x0102_1994, 0x794C_7630];

/// There is none.
#[cfg(not(target_os = "linux"))]
pub(super) enum Bell {}

#[cfg(not(target_os = "linux"))]
impl Bell {
    pub(super) fn new<'a>(_: &Path, _: impl IntoIterator<Item = &'a Path>) -> std::io::Result<Self> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn rang(&self) -> bool {
        match *self {}
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        #[cfg(target_os = "linux")]
        return self.0.as_fd();
        #[cfg(not(target_os = "linux"))]
        match *self {}
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;
    use std::sync::mpsc::channel;

    use crate::sqlite::{Connection, Store, StoreOptions, UpkeepOptions};
    use tidewater_test_support::shell;

    /// Longer than anything takes that is expected.
    const PATIENCE: Duration = Duration::from_secs(30);
    /// Longer than that: who waits for the next look by the clock has waited in vain.
    const NEVER: Duration = Duration::from_secs(3600);

    struct File {
        folder: tempfile::TempDir,
        store: Store,
    }

    impl File {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let options = StoreOptions {
                path: folder.path().join("x.db"),
                busy_timeout: PATIENCE,
                read_pool_max: 1,
                upkeep: UpkeepOptions::default(),
            };
            let (store, _) = Store::open(&options).unwrap();
            Self { folder, store }
        }

        fn path(&self, suffix: &str) -> PathBuf {
            self.folder.path().join(format!("x.db{suffix}"))
        }

        /// In SQLite's shell.
        fn commit(&self, sql: &str) {
            shell::sqlite3_shell(self.path(""), sql);
        }

        fn bell(&self) -> Bell {
            self.store.place.bell().expect("the folder for temporary files is on a disk of this machine")
        }
    }

    /// Whatever others do with the file wakes the thread, which would sleep for an hour; and its end does.
    #[test]
    fn others_wake_the_thread() {
        let file = File::new();
        let is_woken_by = |what: &str, act: &dyn Fn()| {
            let (looks, looked) = channel();
            // Nothing ever goes on: each look but the first is the bell's.
            let look = move |whole| looks.send(whole).is_err();
            let _watch = Watch::start(Some(file.bell()), NEVER, look, || ()).unwrap();
            looked.recv_timeout(PATIENCE).expect("the first look");
            act();
            assert_eq!(looked.recv_timeout(PATIENCE), Ok(true), "a whole look after {what}");
        };
        // It has the log open already: to open it may ring by itself.
        let other = Connection::open(file.path("")).unwrap();
        other.execute_batch("CREATE TABLE t (a)").unwrap();
        is_woken_by("a commit", &|| other.execute_batch("INSERT INTO t VALUES (1)").unwrap());
        is_woken_by("emptying the log", &|| {
            other.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        });
        is_woken_by("a commit to an empty log", &|| other.execute_batch("INSERT INTO t VALUES (2)").unwrap());
        is_woken_by("SQLite's shell", &|| file.commit("INSERT INTO t VALUES (3)"));
        let (away, moved) = (file.path(".away"), file.folder.path().with_extension("moved"));
        is_woken_by("renaming the file", &|| fs::rename(file.path(""), &away).unwrap());
        fs::rename(&away, file.path("")).unwrap();
        is_woken_by("renaming its folder", &|| fs::rename(file.folder.path(), &moved).unwrap());
        fs::rename(&moved, file.folder.path()).unwrap();
        fs::copy(file.path(""), &away).unwrap();
        is_woken_by("replacing the file", &|| fs::rename(&away, file.path("")).unwrap());
        is_woken_by("deleting the log", &|| fs::remove_file(file.path("-wal")).unwrap());
    }

    /// A log that somebody deleted is missed, even though another one is in its place at once.
    #[test]
    fn another_log_in_the_place_of_ours_is_told() {
        let mut file = File::new();
        let (tell, told) = channel();
        file.store.watch(NEVER, move || tell.send(()).unwrap_or_default()).unwrap();
        told.recv_timeout(PATIENCE).unwrap();
        file.commit("CREATE TABLE t (a)");
        fs::remove_file(file.path("-wal")).unwrap();
        fs::write(file.path("-wal"), "").unwrap();
        let found = loop {
            told.recv_timeout(PATIENCE).unwrap();
            if let Err(error) = file.store.foreign_commit() {
                break error;
            }
        };
        assert!(matches!(found, StoreError::ReplacedFile { .. }), "{found}");
    }

    /// Without a bell a commit to a log at rest is found by looking.
    #[test]
    fn without_a_bell_the_clock_wakes_the_thread() {
        let file = File::new();
        let (looks, looked) = channel();
        let mut place = file.store.place.clone();
        let look = move |_| {
            let written = place.log_was_written();
            looks.send(written).is_err() || written
        };
        let _watch = Watch::start(None, Duration::from_millis(1), look, || ()).unwrap();
        let wait_until = |written| while looked.recv_timeout(PATIENCE).unwrap() != written {};
        wait_until(false);
        file.commit("CREATE TABLE t (a)");
        wait_until(true);
    }

    /// Where writes may come past the kernel, or a file is not there, nobody relies on it.
    #[test]
    fn there_is_no_bell_where_it_may_be_silent() {
        let refused = |path: &Path| Bell::new(path, []).map(drop).unwrap_err().kind();
        assert_eq!(refused(Path::new("/proc/self/status")), ErrorKind::Unsupported);
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(refused(&folder.path().join("none")), ErrorKind::NotFound);
    }
}
