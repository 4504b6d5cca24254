//! The processes of this machine that are a Cloud SQL Auth Proxy, by their name.
//!
//! Process evidence explains a status; alone it never makes one. A proxy may run in another container, under
//! another name or for another instance, and a process with the right name may not listen yet.

use std::sync::Once;

use sysinfo::{ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System};

/// Version 2 and version 1. Binaries keep the suffix of their download (`cloud-sql-proxy.linux.amd64`,
/// `cloud_sql_proxy_x64.exe`), and of every name Linux keeps 15 bytes, which is exactly these: so they are
/// compared as prefixes.
const NAMES: [&str; 2] = ["cloud-sql-proxy", "cloud_sql_proxy"];

/// A running proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyProcess {
    /// As the system calls it; on Linux the first 15 bytes.
    pub name: String,
    /// Its process id.
    pub pid: u32,
}

/// The proxies that run now, in the order of their process ids; empty where processes cannot be listed.
///
/// Process evidence explains a status; alone it never makes one.
///
/// Synchronous, and not cheap: it reads one small file per process of the machine. Measured (Linux, release
/// build): 0.3 ms with 80 processes. Call it on a thread that may block, and rarely. It starts no process.
pub fn running_proxies() -> Vec<ProxyProcess> {
    static SETTLED: Once = Once::new();
    SETTLED.call_once(keep_no_files_open);

    let mut system = System::new();
    // Names and states come with the list; threads are left out.
    let nothing_else = ProcessRefreshKind::nothing().without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, nothing_else);
    let mut proxies: Vec<_> = system
        .processes()
        .values()
        .filter(|process| !matches!(process.status(), ProcessStatus::Zombie | ProcessStatus::Dead))
        .filter_map(|process| {
            let name = process.name().to_string_lossy();
            let is_proxy = NAMES.iter().any(|known| name.starts_with(known));
            is_proxy.then(|| ProxyProcess { name: name.into_owned(), pid: process.pid().as_u32() })
        })
        .collect();
    proxies.sort_unstable_by_key(|proxy| proxy.pid);
    proxies
}

/// sysinfo keeps a file open per process, and raises the process's limit of open files for that. The limit is
/// the embedding application's: it is put back.
fn keep_no_files_open() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        sysinfo::set_open_files_limit(0);
        // Lowering to what it was is always allowed.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::path::Path;
    use std::process::{Child, Command};
    use std::time::Duration;
    use tidewater_test_support::wait::until_blocking;

    struct Running(Child);

    impl Running {
        /// `/bin/sleep` under another name. A link and not a copy: a file just written may still be busy.
        fn named(directory: &Path, name: &str) -> Self {
            let binary = directory.join(name);
            std::os::unix::fs::symlink("/bin/sleep", &binary).unwrap();
            Self(Command::new(binary).arg0("sleep").arg("600").spawn().unwrap())
        }

        fn seen(&self) -> Option<ProxyProcess> {
            running_proxies().into_iter().find(|proxy| proxy.pid == self.0.id())
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// A proxy is seen by its name while it runs, and not any more when it has ended, though nobody has asked
    /// for its exit status yet.
    #[test]
    fn a_proxy_is_seen_to_come_and_go() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["cloud-sql-proxy", "cloud_sql_proxy", "cloud-sql-proxy.linux.amd64"] {
            let mut running = Running::named(directory.path(), name);
            let proxy = running.seen().unwrap();
            assert!(name.starts_with(&proxy.name), "{proxy:?}");
            running.0.kill().unwrap();
            until_blocking("the end", Duration::from_secs(30), || match running.seen() {
                None => Ok(()),
                Some(proxy) => Err(format!("{proxy:?}")),
            });
        }
    }

    /// Whoever merely has a similar name is none.
    #[test]
    fn another_process_is_no_proxy() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Running::named(directory.path(), "sql-proxy").seen(), None);
    }

    /// A proxy has many threads, and they are one process. Here a thread of the test itself has the name.
    #[test]
    fn threads_are_not_processes() {
        let named = std::thread::Builder::new().name("cloud-sql-proxy".to_owned());
        let look = || {
            let threads = std::fs::read_dir("/proc/self/task").unwrap();
            let threads = threads.map(|thread| thread.unwrap().file_name().into_string().unwrap());
            (threads.collect::<Vec<_>>(), running_proxies())
        };
        let (threads, proxies) = named.spawn(look).unwrap().join().unwrap();
        assert!(threads.len() > 1, "the thread was there");
        assert!(proxies.iter().all(|proxy| !threads.contains(&proxy.pid.to_string())), "{proxies:?}");
    }
}
