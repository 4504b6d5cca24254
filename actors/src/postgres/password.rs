//! The password: where it comes from, and how it changes while we run.
//!
//! ```text
//! fixed    the same for ever
//! file     read anew for each new connection
//! command  run ─▶ kept for three quarters of its life ─▶ run again, at the next new connection
//!          └ on a thread of its own, once for all who wait, ended with everything it started when its time is over
//! ```
//!
//! What a command prints is a password or part of one: no error, log line or `Debug` here has a byte of it, and what it
//! writes to its standard error goes nowhere.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::core::failure::{CloudFailure, FailureClass};

/// A password is one line; whatever is longer is none.
const PASSWORD_BYTES_MAX: u64 = 64 * 1024;

/// Between two looks at a command that has said everything and has not ended.
const LOOK: Duration = Duration::from_millis(5);

/// Where the password of a new connection comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PasswordSource {
    /// The options have it, or there is none.
    #[default]
    Fixed,
    /// The line that this file has.
    File(PathBuf),
    /// The line that this command prints.
    Command(PasswordCommand),
}

/// A command that prints a password.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordCommand {
    /// The program and its arguments, which no shell sees. Not empty.
    pub argv: Vec<String>,
    /// It is ended after this.
    pub timeout: Duration,
    /// How long the server takes what it printed.
    pub ttl: Duration,
}

/// The program alone: arguments may be secrets.
impl fmt::Debug for PasswordCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasswordCommand").field("program", &self.program()).finish_non_exhaustive()
    }
}

impl PasswordCommand {
    fn program(&self) -> &str {
        self.argv.first().map_or("", String::as_str)
    }

    /// Whether what it printed then need not be asked for anew. Early, so that no connection begins with what is nearly over.
    fn is_young(&self, printed: Instant) -> bool {
        printed.elapsed() < self.ttl * 3 / 4
    }

    fn failed(&self, how: impl fmt::Display) -> CloudFailure {
        CloudFailure::new(
            FailureClass::Credentials,
            format!("cloud.password_command ({}) {how}", self.program()),
        )
        .with_remedy(
            "let cloud.password_command print the password, one line and nothing else, as this account, with status 0",
        )
    }
}

impl PasswordSource {
    /// How much longer a new connection may take on account of it, with a second attempt where the password was new.
    #[must_use]
    pub fn patience(&self, connecting: Duration) -> Duration {
        match self {
            Self::Fixed => Duration::ZERO,
            Self::File(_) => connecting,
            Self::Command(command) => (command.timeout + Duration::from_secs(1)) * 2 + connecting * 3,
        }
    }
}

/// The passwords of one cloud, for all of its connections.
pub(super) struct Passwords {
    source: PasswordSource,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// The last good one, and when it was new.
    last: Option<(String, Instant)>,
    /// Those that somebody may have been told, the newest last: an answer may be about an older one.
    told: Vec<String>,
    /// The command that is on its way.
    running: Option<watch::Receiver<Option<Answer>>>,
}

/// How many are remembered: each of the connections that are made at a time may have had one, and got another one since.
const TOLD_MAX: usize = 8;

/// What is shorter is hidden only where it stands alone, or every text would be full of holes.
const LONG: usize = 8;

/// What is shorter than this is part of every other sentence: to hide it would be to tell it.
const SHORT: usize = 4;

impl State {
    /// This is the good one from now on.
    fn put(&mut self, password: &str) {
        self.last = Some((password.to_owned(), Instant::now()));
        self.told.retain(|told| told != password);
        self.told.push(password.to_owned());
        if self.told.len() > TOLD_MAX {
            self.told.remove(0);
        }
    }
}

type Answer = Result<String, CloudFailure>;

impl Passwords {
    pub(super) fn new(source: PasswordSource, first: Option<&str>) -> Self {
        // What the file had when the settings were read stands in where it cannot be read for a moment.
        let mut state = State::default();
        match (&source, first) {
            (PasswordSource::Command(_), _) | (_, None) => {}
            (_, Some(first)) => state.put(first),
        }
        Self { source, state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn source(&self) -> &PasswordSource {
        &self.source
    }

    /// Whether [`Passwords::get`] runs nothing.
    pub(super) fn is_at_hand(&self) -> bool {
        match &self.source {
            PasswordSource::Command(command) => self.last().is_some_and(|(_, since)| command.is_young(since)),
            PasswordSource::Fixed | PasswordSource::File(_) => true,
        }
    }

    /// For a new connection.
    pub(super) async fn get(&self) -> Result<Option<String>, CloudFailure> {
        match &self.source {
            PasswordSource::Fixed => Ok(self.last().map(|(last, _)| last)),
            PasswordSource::File(path) => self.read(path).await.map(Some),
            PasswordSource::Command(command) => {
                let last = self.last();
                match &last {
                    Some((last, since)) if command.is_young(*since) => Ok(Some(last.clone())),
                    _ => match (self.run(command).await, last) {
                        (Err(_), Some((last, since))) if since.elapsed() < command.ttl => Ok(Some(last)),
                        (answer, _) => answer.map(Some),
                    },
                }
            }
        }
    }

    /// After the server has refused one: another, if there is one. The same is not shown to it twice, which may lock the
    /// account.
    pub(super) async fn other_than(&self, refused: Option<&str>) -> Result<Option<String>, CloudFailure> {
        let now = match &self.source {
            PasswordSource::Fixed => return Ok(None),
            PasswordSource::File(path) => self.read(path).await?,
            PasswordSource::Command(command) => {
                {
                    let mut state = lock(&self.state);
                    if state.last.as_ref().is_some_and(|(last, _)| Some(last.as_str()) == refused) {
                        state.last = None;
                    }
                }
                match self.last() {
                    // Somebody else has asked for it meanwhile.
                    Some((last, _)) => last,
                    None => self.run(command).await?,
                }
            }
        };
        Ok(Some(now).filter(|now| Some(now.as_str()) != refused))
    }

    /// A text of somebody who may know a password, without it, and without those of before.
    pub(super) fn hide(&self, text: &str) -> String {
        let mut told = lock(&self.state).told.clone();
        // One may be the beginning of another.
        told.sort_unstable_by_key(|password| std::cmp::Reverse(password.len()));
        told.iter().fold(text.to_owned(), |text, password| match password.len() {
            LONG.. => text.replace(password.as_str(), HIDDEN),
            SHORT.. => without_word(&text, password),
            _ => text,
        })
    }

    fn last(&self) -> Option<(String, Instant)> {
        lock(&self.state).last.clone()
    }

    /// A file that is being written, or is not there for a moment, has the password that it had: if that is none any more,
    /// the server says so.
    async fn read(&self, path: &Path) -> Answer {
        let file = path.to_owned();
        let read = tokio::task::spawn_blocking(move || password_in(&file)).await;
        match read.unwrap_or_else(|_| Err("it was not read".to_owned())) {
            Ok(password) => {
                lock(&self.state).put(&password);
                Ok(password)
            }
            Err(reason) => self.last().map(|(last, _)| last).ok_or_else(|| {
                CloudFailure::new(
                    FailureClass::Credentials,
                    format!("cloud.password_file = {} cannot be used: {reason}", path.display()),
                )
                .with_remedy("let CLOUD_SQL_PASSWORD_FILE name a readable file that holds the password")
            }),
        }
    }

    /// Waits for the command, which whoever came first has started. Who goes away does not stop it.
    async fn run(&self, command: &PasswordCommand) -> Answer {
        let mut answer = {
            let mut state = lock(&self.state);
            match &state.running {
                Some(running) if running.has_changed().is_ok() => running.clone(),
                _ => {
                    let (tell, answer) = watch::channel(None);
                    state.running = Some(answer.clone());
                    let (command, shared) = (command.clone(), self.state.clone());
                    let work = move || {
                        let answer = run(&command);
                        let mut state = lock(&shared);
                        state.running = None;
                        if let Ok(password) = &answer {
                            state.put(password);
                        }
                        drop(state);
                        tell.send_replace(Some(answer));
                    };
                    let thread = std::thread::Builder::new().name("password-command".to_owned());
                    if let Err(error) = thread.spawn(work) {
                        return Err(CloudFailure::new(FailureClass::CheckFailed, error.to_string()));
                    }
                    answer
                }
            }
        };
        let answer = match answer.wait_for(Option::is_some).await {
            Ok(answer) => answer.clone(),
            Err(_) => None,
        };
        answer.unwrap_or_else(|| Err(command.failed("was not run to its end")))
    }
}

/// What stands in the place of a password.
const HIDDEN: &str = "***";

/// A text without a word, where that is no part of another one.
fn without_word(text: &str, word: &str) -> String {
    let mut hidden = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(word) {
        let (before, from) = rest.split_at(at);
        let after = &from[word.len()..];
        let is_part = before
            .chars()
            .next_back()
            .or_else(|| hidden.chars().next_back())
            .is_some_and(char::is_alphanumeric)
            || after.chars().next().is_some_and(char::is_alphanumeric);
        hidden.push_str(before);
        hidden.push_str(if is_part { word } else { HIDDEN });
        rest = after;
    }
    hidden + rest
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The line that a file holds; one newline at its end is not part of it.
///
/// # Errors
/// With the reason, which has no word of the file.
pub fn password_in(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(PASSWORD_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > PASSWORD_BYTES_MAX {
        return Err(format!("it is longer than {PASSWORD_BYTES_MAX} bytes"));
    }
    match without_newline(&text) {
        "" => Err("it is empty".to_owned()),
        line if line.contains('\0') => Err("it contains a NUL".to_owned()),
        line => Ok(line.to_owned()),
    }
}

fn without_newline(text: &str) -> &str {
    let line = text.strip_suffix('\n').unwrap_or(text);
    line.strip_suffix('\r').unwrap_or(line)
}

// ---------------------------------------------------------------------------------------------------------
// The command
// ---------------------------------------------------------------------------------------------------------

fn run(command: &PasswordCommand) -> Answer {
    let deadline = Instant::now() + command.timeout;
    let mut child = start(command)?;
    let Some(output) = child.stdout.take() else {
        end(&mut child);
        return Err(command.failed("has no output"));
    };
    // A program that it left behind may keep the output open: then this thread waits for that one, and nobody else does.
    let (tell, said) = std::sync::mpsc::channel();
    let reader = std::thread::Builder::new().name("password-output".to_owned());
    let reading = reader.spawn(move || {
        let mut bytes = vec![];
        let read = output.take(PASSWORD_BYTES_MAX + 1).read_to_end(&mut bytes);
        // Nobody listens any more where the time is over.
        let _ = tell.send(read.map(|_| bytes));
    });
    if let Err(error) = reading {
        end(&mut child);
        return Err(CloudFailure::new(FailureClass::CheckFailed, error.to_string()));
    }
    let late = || command.failed(format_args!("did not end within {} s", command.timeout.as_secs_f64()));
    let bytes = match said.recv_timeout(command.timeout) {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => {
            end(&mut child);
            return Err(command.failed(format_args!("could not be listened to: {error}")));
        }
        Err(_) => {
            end(&mut child);
            return Err(late());
        }
    };
    if bytes.len() as u64 > PASSWORD_BYTES_MAX {
        end(&mut child);
        return Err(command.failed(format_args!("prints more than {PASSWORD_BYTES_MAX} bytes")));
    }
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(LOOK),
            Ok(None) => {
                end(&mut child);
                return Err(late());
            }
            Err(error) => return Err(command.failed(format_args!("was lost: {error}"))),
        }
    };
    if !status.success() {
        return Err(command.failed(format_args!("failed ({status})")));
    }
    let text = String::from_utf8(bytes).map_err(|_| command.failed("prints what is not text in UTF-8"))?;
    match without_newline(&text) {
        "" => Err(command.failed("prints nothing")),
        line if line.contains('\n') => Err(command.failed("prints more than one line")),
        line if line.contains('\0') => Err(command.failed("prints a NUL")),
        line => Ok(line.to_owned()),
    }
}

fn start(command: &PasswordCommand) -> Result<Child, CloudFailure> {
    let mut process = Command::new(command.program());
    process
        .args(command.argv.get(1..).unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt as _;
        // A group of its own, so that it can be ended with what it started: `gcloud` is a script around a program.
        process.process_group(0);
    }
    process.spawn().map_err(|error| command.failed(format_args!("cannot be run: {error}")))
}

/// With everything that it started.
fn end(child: &mut Child) {
    #[cfg(unix)]
    if let Ok(id) = i32::try_from(child.id())
        && let Some(group) = rustix::process::Pid::from_raw(id)
    {
        // Not waited for yet, so the number is still its own.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is as short as a word is hidden where it stands as one, whatever stands around it.
    #[test]
    fn a_short_password_is_hidden_as_a_word() {
        let passwords = Passwords::new(PasswordSource::Fixed, Some("key1"));
        for (text, shown) in [
            ("key1", "***"),
            ("user \"key1\", key1!", "user \"***\", ***!"),
            ("key12 monkey1 ékey1 key1", "key12 monkey1 ékey1 ***"),
            ("key1key1", "key1key1"),
            ("no key", "no key"),
        ] {
            assert_eq!(passwords.hide(text), shown);
        }
        assert_eq!(Passwords::new(PasswordSource::Fixed, Some("is")).hide("this is it"), "this is it");
    }

    /// The last few are remembered, and no more.
    #[test]
    fn the_passwords_of_before_are_hidden_as_well() {
        let passwords = Passwords::new(PasswordSource::Fixed, None);
        for n in 0..=TOLD_MAX {
            lock(&passwords.state).put(&format!("password-{n}"));
        }
        assert_eq!(passwords.hide("password-1 password-8 password-0"), "*** *** password-0");
    }
}
