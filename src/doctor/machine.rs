//! What only the operating system knows: who holds the lock, and how much room is left. Nothing is locked or written.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use tidewater_actors::core::doctor::{Disk, Lock};

use super::folder_of;

/// Who holds the lock beside the file. To try it would keep away a supervisor that starts in this moment, so that the
/// system's own list is read instead, which Linux alone has.
pub(super) fn lock_holder(path: &Path) -> Lock {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = PathBuf::from(name);
    let metadata = match fs::metadata(&file) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Lock::Free,
        Err(_) => return Lock::CannotSee,
    };
    let Ok(list) = fs::read_to_string("/proc/locks") else { return Lock::CannotSee };
    let device = (rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
    let holder = flocks(&list, metadata.ino())
        .into_iter()
        // The numbers of a device differ between the two where file systems are stacked; the open file tells then.
        .find(|(pid, on)| *on == device || has_open(*pid, &file));
    match holder {
        None => Lock::Free,
        Some((pid, _)) => {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok();
            Lock::Held { pid, name: name.map(|name| crate::cli::on_one_line(name.trim())) }
        }
    }
}

/// The processes with an exclusive lock on the whole of a file with this number, each with its device.
fn flocks(list: &str, inode: u64) -> Vec<(u32, (u32, u32))> {
    // "1: FLOCK  ADVISORY  WRITE 4711 fe:00:131090 0 EOF"; those that wait have an arrow after the number.
    list.lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, "FLOCK", _, "WRITE", pid, place, ..] = words[..] else { return None };
            let mut numbers = place.split(':');
            let (major, minor) = (numbers.next()?, numbers.next()?);
            let device = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
            (numbers.next()?.parse::<u64>().ok()? == inode).then_some((pid.parse().ok()?, device))
        })
        .collect()
}

fn has_open(pid: u32, file: &Path) -> bool {
    let Ok(file) = fs::canonicalize(file) else { return false };
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|target| target == file)
}

/// The room on the disk of a file, or of the folder where it would be.
pub(super) fn disk(path: &Path) -> Disk {
    let at = fs::canonicalize(path).or_else(|_| fs::canonicalize(folder_of(path)));
    let seen = at.and_then(|at| rustix::fs::statvfs(&at).map_err(Into::into));
    match seen {
        Ok(seen) => Disk::Seen {
            free_bytes: seen.f_bavail.saturating_mul(seen.f_frsize),
            read_only: seen.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
        },
        Err(error) => Disk::CannotSee(error.to_string()),
    }
}

pub(super) fn is_socket(found: &fs::Metadata) -> bool {
    found.file_type().is_socket()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only who holds the whole file exclusively counts, not who waits for it or holds something else.
    #[test]
    fn the_holder_of_a_lock_is_read_from_the_systems_list() {
        let list = "1: POSIX  ADVISORY  WRITE 10 fe:00:77 0 EOF\n\
                    2: FLOCK  ADVISORY  WRITE 11 fe:0a:77 0 EOF\n\
                    2: -> FLOCK  ADVISORY  WRITE 12 fe:0a:77 0 EOF\n\
                    3: FLOCK  ADVISORY  READ 13 fe:00:77 0 EOF\n\
                    4: FLOCK  ADVISORY  WRITE 14 fe:00:78 0 EOF\n";
        assert_eq!(flocks(list, 77), [(11, (0xfe, 0x0a))]);
        assert_eq!(flocks("nonsense", 77), []);
    }
}
