//! What the architecture forbids, looked for in the sources.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};

/// The pure middle names no actor, no runtime, no database driver, no clock and no randomness of its own.
#[test]
fn the_core_does_no_io() {
    for (path, line, text) in code("actors/src/core") {
        for banned in [
            "actix",
            "tokio::",
            "tokio_",
            "rusqlite",
            "postgres::",
            "deadpool",
            "SystemTime::now",
            "Instant::now",
            "std::fs",
            "std::net",
            "rand::",
        ] {
            assert!(!text.contains(banned), "{}:{line} names {banned}: {text}", path.display());
        }
    }
}

/// One file with its parts knows SQLite, and another knows PostgreSQL.
#[test]
fn one_file_knows_each_database() {
    for (path, line, text) in code("actors/src").chain(code("src")) {
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let in_sqlite = path.parent().is_some_and(|folder| folder.ends_with("actors/src/sqlite"));
        if file != "sqlite.rs" && !in_sqlite {
            // The facade hands the connection type to the app's closures, takes the parameters of their queries, and that is
            // all it does with them.
            let hands_on = text.contains("rusqlite::Connection") || text.contains("rusqlite::Params");
            let facade = file == "lib.rs" || ["database.rs", "reads.rs"].contains(&file.as_str()) && hands_on;
            assert!(!text.contains("rusqlite") || facade, "{}:{line} knows SQLite: {text}", path.display());
        }
        let in_postgres = path.parent().is_some_and(|folder| folder.ends_with("actors/src/postgres"));
        if file != "postgres.rs" && !in_postgres {
            for driver in ["tokio_postgres", "deadpool_postgres"] {
                assert!(!text.contains(driver), "{}:{line} knows PostgreSQL: {text}", path.display());
            }
        }
    }
}

/// Actors wait for nothing in a way that closes their mailbox, and tick by re-arming.
#[test]
fn actors_keep_their_mailboxes_open() {
    for (path, line, text) in code("actors/src").chain(code("src")) {
        for banned in ["ctx.wait(", "AtomicResponse", "run_interval", "SyncArbiter"] {
            assert!(!text.contains(banned), "{}:{line} uses {banned}: {text}", path.display());
        }
    }
}

/// Lines of code below a folder: comments left out, unit tests too.
fn code(folder: &str) -> impl Iterator<Item = (PathBuf, usize, String)> {
    let mut files = vec![];
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut files);
    assert!(!files.is_empty(), "{folder} has sources");
    files.into_iter().flat_map(|path| {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text
            .lines()
            .take_while(|line| !line.starts_with("#[cfg(test)]"))
            .enumerate()
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
            .map(|(at, line)| (path.clone(), at + 1, line.to_owned()))
            .collect();
        lines
    })
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}
