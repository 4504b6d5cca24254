//! Foreign writers: programs that know nothing of Tidewater and open the same file.

use std::ffi::OsStr;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs `sql` in SQLite's own shell against the file and returns what it printed. It waits up to 10 s for
/// other writers. Foreign keys are off there unless `sql` switches them on, as with every shell.
///
/// # Panics
/// When the program is missing (with the remedy), or when it fails (with its error output).
pub fn sqlite3_shell(path: impl AsRef<Path>, sql: &str) -> String {
    let mut command = Command::new("sqlite3");
    command.args(["-batch", "-bail", "-init", "/dev/null", "-cmd", ".timeout 10000"]).arg(path.as_ref());
    run(command, sql, "SQLite's shell", "run `make test`, which installs it, or `apt-get install sqlite3`")
}

/// Runs a Python `script` in which `con` is an open `sqlite3` connection to the file (10 s busy timeout),
/// and returns what it printed. What the script has not committed is committed at its end.
///
/// # Panics
/// When the program is missing (with the remedy), or when it fails (with its error output).
pub fn python_sqlite(path: impl AsRef<Path>, script: &str) -> String {
    let program = format!(
        "import sqlite3, sys\ncon = sqlite3.connect(sys.argv[1], timeout=10)\n{script}\ncon.commit()\ncon.close()\n"
    );
    let mut command = Command::new("python3");
    command.args([OsStr::new("-"), path.as_ref().as_os_str()]);
    run(command, &program, "Python", "`apt-get install python3`")
}

fn run(mut command: Command, input: &str, name: &str, remedy: &str) -> String {
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == ErrorKind::NotFound => panic!("{name} was not found: {remedy}"),
        Err(error) => panic!("{name} could not be started: {error}"),
    };
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        // On a thread of its own, as either side may fill its pipe. A program that ends before it has read
        // everything says why on its error output.
        scope.spawn(move || stdin.write_all(input.as_bytes()));
        child.wait_with_output().unwrap()
    });
    assert!(
        output.status.success(),
        "{name} failed ({}): {}\n(the input began with: {})",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim(),
        input.chars().take(400).collect::<String>()
    );
    String::from_utf8(output.stdout).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_write_and_read_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a file.db");
        sqlite3_shell(&file, "CREATE TABLE t (a TEXT); INSERT INTO t VALUES ('von der Shell');");
        python_sqlite(&file, "con.execute('INSERT INTO t VALUES (?)', ('aus Python 🐍',))");
        assert_eq!(sqlite3_shell(&file, "SELECT a FROM t ORDER BY a;"), "aus Python 🐍\nvon der Shell\n");
        assert_eq!(python_sqlite(&file, "print(con.execute('SELECT count(*) FROM t').fetchone()[0])"), "2\n");
    }

    #[test]
    #[should_panic(expected = "no such table: missing")]
    fn failure_is_told_in_the_program_s_words() {
        let folder = tempfile::tempdir().unwrap();
        sqlite3_shell(folder.path().join("x.db"), "SELECT 1; SELECT * FROM missing;");
    }
}
