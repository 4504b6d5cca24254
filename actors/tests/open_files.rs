//! Alone in its process: it changes a limit that all tests of a process share.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs)]

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tidewater_actors::processes::running_proxies;

/// The limit of open files belongs to the application: looking at processes leaves it alone.
#[test]
fn the_limit_of_open_files_stays_what_it_was() {
    let limit = Rlimit { current: Some(200), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).unwrap();
    running_proxies();
    assert_eq!(getrlimit(Resource::Nofile), limit);
}
