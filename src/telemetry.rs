//! The log: one line per event on standard error, in the look that people grep for, or as JSON.
//!
//! Parts: [`start`] (the root logger and its guard), [`LogGuard`] (writes what is left when it is dropped), [`Levels`] (what is
//! written, for all and for single actors, changed while it is in use), `TextDrain` (the documented look).
//!
//! ```text
//! Logger ─▶ Levels ─▶ bounded channel, waits when full ─▶ thread ─▶ TextDrain or slog-json ─▶ standard error
//! ```
//!
//! The logger is a value: whoever logs gets a child of it. There is no global one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, PoisonError, RwLock};

use slog::{Drain, FnValue, KV, Level, Logger, OwnedKVList, PushFnValue, Record, o};
use slog_async::{Async, OverflowStrategy};
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};

use crate::settings::{LogFormat, LogLevel, LogSettings};

/// Records that may wait for a slow terminal. A start writes some twenty; whoever logs more at once waits,
/// because a lost line costs more than a late one.
const CHANNEL_RECORDS_MAX: usize = 1024;

/// Starts the log on standard error. What was logged before the guard is dropped is written; what is logged
/// after that is not.
#[must_use = "the log ends when the guard is dropped"]
pub fn start(settings: &LogSettings) -> (Logger, LogGuard) {
    // https://no-color.org
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
    start_on(settings, io::stderr(), colour)
}

/// As [`start`], on another writer, without colours.
#[must_use = "the log ends when the guard is dropped"]
pub fn start_with(settings: &LogSettings, writer: impl Write + Send + 'static) -> (Logger, LogGuard) {
    start_on(settings, writer, false)
}

fn start_on(settings: &LogSettings, writer: impl Write + Send + 'static, colour: bool) -> (Logger, LogGuard) {
    let (drain, guard) = match settings.format {
        LogFormat::Text => asynchronous(TextDrain::new(writer, colour)),
        LogFormat::Json => asynchronous(json(writer)),
    };
    let levels = Levels::of(settings);
    let filtered = Filtered { levels: levels.clone(), drain };
    // A log that cannot be written must not end what it tells about.
    (Logger::root(filtered.ignore_res(), o!()), LogGuard { levels, _inner: guard })
}

/// What is written: a level for all, and others for single actors. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Levels(Arc<RwLock<Chosen>>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Chosen {
    usual: Level,
    of_actors: BTreeMap<&'static str, Level>,
}

impl Chosen {
    fn of(settings: &LogSettings) -> Self {
        let of_actors = settings.levels.iter().map(|(actor, level)| (*actor, level_of(*level))).collect();
        Self { usual: level_of(settings.level), of_actors }
    }
}

impl Levels {
    fn of(settings: &LogSettings) -> Self {
        Self(Arc::new(RwLock::new(Chosen::of(settings))))
    }

    /// From the next line on, these settings' levels hold.
    pub fn set(&self, settings: &LogSettings) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Chosen::of(settings);
    }

    /// Whether a line is written. The actor is looked for only where one of them has a level of its own.
    fn let_through(&self, record: &Record<'_>, of_logger: &OwnedKVList) -> bool {
        let chosen = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let own = match chosen.of_actors.is_empty() {
            true => None,
            false => actor_of(record, of_logger).and_then(|actor| chosen.of_actors.get(actor.as_str())),
        };
        record.level().is_at_least(*own.unwrap_or(&chosen.usual))
    }

    /// The least important level that somebody's lines are written at.
    fn most(&self) -> Level {
        let chosen = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let all = chosen.of_actors.values().copied().chain([chosen.usual]);
        all.max_by_key(|level| level.as_usize()).unwrap_or(chosen.usual)
    }
}

fn level_of(level: LogLevel) -> Level {
    match level {
        LogLevel::Error => Level::Error,
        LogLevel::Warning => Level::Warning,
        LogLevel::Info => Level::Info,
        LogLevel::Debug => Level::Debug,
    }
}

/// Who speaks, as the logger was given to it.
fn actor_of(record: &Record<'_>, of_logger: &OwnedKVList) -> Option<String> {
    #[derive(Default)]
    struct Actor(Option<String>);
    impl slog::Serializer for Actor {
        fn emit_arguments(&mut self, key: slog::Key, value: &fmt::Arguments<'_>) -> slog::Result {
            if key == "actor" && self.0.is_none() {
                self.0 = Some(value.to_string());
            }
            Ok(())
        }
    }
    let mut actor = Actor::default();
    // One that cannot be written is nobody.
    let _ = of_logger.serialize(record, &mut actor);
    actor.0
}

/// Passes on what the levels let through.
struct Filtered<D> {
    levels: Levels,
    drain: D,
}

impl<D: Drain<Ok = ()>> Drain for Filtered<D> {
    type Ok = ();
    type Err = D::Err;

    fn log(&self, record: &Record<'_>, of_logger: &OwnedKVList) -> Result<(), D::Err> {
        if self.levels.let_through(record, of_logger) {
            self.drain.log(record, of_logger)?;
        }
        Ok(())
    }

    fn is_enabled(&self, level: Level) -> bool {
        level.is_at_least(self.levels.most())
    }
}

fn asynchronous<D>(drain: D) -> (Async, slog_async::AsyncGuard)
where
    D: Drain<Ok = (), Err = io::Error> + Send + 'static,
{
    Async::new(drain.ignore_res())
        .chan_size(CHANNEL_RECORDS_MAX)
        .overflow_strategy(OverflowStrategy::Block)
        .thread_name("tidewater-log".to_owned())
        .build_with_guard()
}

/// Keeps the log going; dropping it waits until everything is written.
pub struct LogGuard {
    levels: Levels,
    _inner: slog_async::AsyncGuard,
}

impl LogGuard {
    /// What is written, to be changed while the log is in use.
    #[must_use]
    pub fn levels(&self) -> Levels {
        self.levels.clone()
    }
}

impl fmt::Debug for LogGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogGuard")
    }
}

/// One object per line: `ts` (RFC 3339, UTC), `level`, `msg`, then what was logged with it.
fn json(writer: impl Write + Send + 'static) -> impl Drain<Ok = (), Err = io::Error> + Send + 'static {
    // slog writes pairs last first.
    slog_json::Json::new(io::LineWriter::new(writer))
        .add_key_value(o!(
            "msg" => PushFnValue(|record: &Record<'_>, value| value.emit(record.msg())),
            "level" => FnValue(|record: &Record<'_>| level_name(record.level())),
            "ts" => PushFnValue(|_, value| {
                value.emit(OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default())
            }),
        ))
        .build()
}

/// `HH:MM:SS | LEVEL | message | key=value`.
struct TextDrain<W> {
    /// Drains take `&self`; this one lives on the log's own thread.
    writer: RefCell<W>,
    colour: bool,
}

impl<W: Write> TextDrain<W> {
    fn new(writer: W, colour: bool) -> Self {
        Self { writer: RefCell::new(writer), colour }
    }
}

impl<W: Write> Drain for TextDrain<W> {
    type Ok = ();
    type Err = io::Error;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> io::Result<()> {
        let line = text_line(local_now(), self.colour, record);
        let mut writer = self.writer.borrow_mut();
        // One call per line, so that lines of several processes on one terminal do not mix.
        writer.write_all(line.as_bytes())?;
        writer.flush()
    }
}

fn text_line(now: OffsetDateTime, colour: bool, record: &Record<'_>) -> String {
    let time = now.format(format_description!("[hour]:[minute]:[second]")).unwrap_or_default();
    let name = level_name(record.level());
    let mut line = match colour_of(record.level()).filter(|_| colour) {
        Some(code) => format!("{time} | \x1b[{code}m{name}\x1b[0m | "),
        None => format!("{time} | {name} | "),
    };
    push_escaped(&mut line, &record.msg().to_string());
    // The event's pairs only. The logger's own (which actor speaks) are for machines, in the JSON format: people grep
    // for whole lines, whose text is fixed.
    push_pairs(&mut line, |pairs| record.kv().serialize(record, pairs));
    line.push('\n');
    line
}

/// A line break inside a message would make a line of its own that nobody logged.
fn push_escaped(line: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_debug()) } else { line.push(c) }
    }
}

/// slog hands pairs over last first; they are written first first.
fn push_pairs(line: &mut String, serialize: impl FnOnce(&mut Pairs) -> slog::Result) {
    let mut pairs = Pairs::default();
    // A value that cannot be written is missing from its line; the line itself is not.
    let _ = serialize(&mut pairs);
    for (key, value) in pairs.0.iter().rev() {
        line.push_str(" | ");
        line.push_str(key);
        line.push('=');
        push_escaped(line, value);
    }
}

#[derive(Default)]
struct Pairs(Vec<(slog::Key, String)>);

impl slog::Serializer for Pairs {
    fn emit_arguments(&mut self, key: slog::Key, value: &fmt::Arguments<'_>) -> slog::Result {
        self.0.push((key, value.to_string()));
        Ok(())
    }
}

/// The names that the older system used; slog's own are cut to four letters.
fn level_name(level: Level) -> &'static str {
    match level {
        Level::Critical | Level::Error => "ERROR",
        Level::Warning => "WARNING",
        Level::Info => "INFO",
        Level::Debug | Level::Trace => "DEBUG",
    }
}

fn colour_of(level: Level) -> Option<u8> {
    match level {
        Level::Critical | Level::Error => Some(31),
        Level::Warning => Some(33),
        Level::Info => None,
        Level::Debug | Level::Trace => Some(2),
    }
}

/// Asked anew for each line, so that a process that lives through a change of the clocks follows it.
fn local_now() -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    now.to_offset(UtcOffset::local_offset_at(now).unwrap_or(UtcOffset::UTC))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use slog::{debug, error, info, warn};

    use super::*;
    use crate::settings::Settings;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: &str, level: &str, log: impl FnOnce(&Logger)) -> Vec<String> {
        let settings = Settings::builder().set("log.format", format).set("log.level", level).build().unwrap();
        let written = Shared::default();
        let (logger, guard) = start_with(&settings.log, written.clone());
        log(&logger);
        drop(guard);
        let written = written.0.lock().unwrap().clone();
        String::from_utf8(written).unwrap().lines().map(str::to_owned).collect()
    }

    /// The look is the documented one to the character, leading spaces and emoji included.
    #[test]
    fn a_line_looks_as_documented() {
        let lines = logged("text", "debug", |log| {
            info!(log, "ℹ️  Proxy not running on 127.0.0.1:5432");
            info!(log, "   Using SQLite-only mode (Cloud SQL unavailable)");
            warn!(log, "⚠️  Proxy unavailable after {} attempts", 5);
            error!(log, "wrong credentials");
            debug!(log, "asked");
        });
        let (times, rest): (Vec<_>, Vec<_>) = lines.iter().map(|line| line.split_at(8)).unzip();
        assert_eq!(
            rest,
            [
                " | INFO | ℹ️  Proxy not running on 127.0.0.1:5432",
                " | INFO |    Using SQLite-only mode (Cloud SQL unavailable)",
                " | WARNING | ⚠️  Proxy unavailable after 5 attempts",
                " | ERROR | wrong credentials",
                " | DEBUG | asked",
            ]
        );
        for time in times {
            let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
            assert_eq!(shape, "00:00:00");
        }
    }

    /// Keys and values follow the message, those of the event before those of the logger.
    #[test]
    fn keys_and_values_follow_the_message() {
        let lines = logged("text", "info", |log| {
            let log = log.new(o!("actor" => "syncer"));
            info!(log, "flushed"; "rows" => 3, "took_ms" => 1.5);
        });
        assert!(lines[0].ends_with(" | INFO | flushed | rows=3 | took_ms=1.5"), "{}", lines[0]);
    }

    /// A message or value with a line break cannot forge a second line.
    #[test]
    fn a_line_break_cannot_forge_a_line() {
        let lines = logged("text", "info", |log| info!(log, "a\nb"; "detail" => "c\nd\x1b[31m"));
        assert_eq!(lines.len(), 1);
        assert!(lines[0].ends_with("a\\nb | detail=c\\nd\\u{1b}[31m"), "{}", lines[0]);
    }

    /// What is less important than the level is not written.
    #[test]
    fn the_level_is_respected() {
        let lines = logged("text", "warning", |log| {
            info!(log, "no");
            warn!(log, "yes");
        });
        assert_eq!(lines.len(), 1);
        assert!(lines[0].ends_with("| WARNING | yes"));
    }

    /// An actor with a level of its own is heard, or not, whatever holds for the others; a later word takes the place of an
    /// earlier one at once, also for loggers that were handed out before.
    #[test]
    fn single_actors_have_levels_of_their_own() {
        let load = |level: &str, levels: &str| {
            let sources = Settings::builder().set("log.format", "json").set("log.level", level);
            sources.set("log.levels", levels).build().unwrap()
        };
        let written = Shared::default();
        let (log, guard) =
            start_with(&load("info", "CloudSyncer=debug, ProxyWatcher=error").log, written.clone());
        // As the facade does it, with what keeps a line that cannot be written from doing harm in between.
        let root = tidewater_actors::supervision::calm(log.clone());
        let [syncer, watcher, writer] =
            ["CloudSyncer", "ProxyWatcher", "SqliteWriter"].map(|name| root.new(o!("actor" => name)));
        for log in [&syncer, &watcher, &writer, &root] {
            debug!(log, "first debug");
            warn!(log, "first warning");
        }
        guard.levels().set(&load("error", "SqliteWriter=debug").log);
        for log in [&syncer, &watcher, &writer, &root] {
            debug!(log, "second debug");
        }
        drop(guard);
        let lines = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let said: Vec<(String, String)> = lines
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .map(|line| {
                (
                    line["actor"].as_str().unwrap_or("nobody").to_owned(),
                    line["msg"].as_str().unwrap().to_owned(),
                )
            })
            .collect();
        let expected = [
            ("CloudSyncer", "first debug"),
            ("CloudSyncer", "first warning"),
            ("SqliteWriter", "first warning"),
            ("nobody", "first warning"),
            ("SqliteWriter", "second debug"),
        ];
        assert_eq!(said, expected.map(|(actor, line)| (actor.to_owned(), line.to_owned())));
    }

    /// JSON has one object per line with time, level and message.
    #[test]
    fn json_has_one_object_per_line() {
        let lines = logged("json", "info", |log| {
            warn!(log, "a \"quoted\"\nmessage"; "rows" => 3);
            info!(log, "second");
        });
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("{\"ts\":\""), "{}", lines[0]);
        let first: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(first["level"], "WARNING");
        assert_eq!(first["msg"], "a \"quoted\"\nmessage");
        assert_eq!(first["rows"], 3);
        OffsetDateTime::parse(first["ts"].as_str().unwrap(), &Rfc3339).unwrap();
    }

    /// More lines than the channel holds are all written: whoever logs waits.
    #[test]
    fn nothing_is_dropped_when_the_channel_is_full() {
        let lines = logged("text", "info", |log| {
            for n in 0..5 * CHANNEL_RECORDS_MAX {
                info!(log, "{n}");
            }
        });
        assert_eq!(lines.len(), 5 * CHANNEL_RECORDS_MAX);
    }

    /// A writer that fails does not end the program that logs, and neither does logging after the end.
    #[test]
    fn a_log_that_cannot_be_written_does_no_harm() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        for format in ["text", "json"] {
            let settings = Settings::builder().set("log.format", format).build().unwrap();
            let (log, guard) = start_with(&settings.log, Broken);
            info!(log, "unheard");
            drop(guard);
            info!(log, "too late");
        }
    }

    /// Colours mark the level and nothing else.
    #[test]
    fn colours_mark_the_level_only() {
        let written = Shared::default();
        let settings = Settings::builder().build().unwrap();
        let (log, guard) = start_on(&settings.log, written.clone(), true);
        warn!(log, "x");
        info!(log, "y");
        drop(guard);
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains(" | \x1b[33mWARNING\x1b[0m | x\n"), "{text:?}");
        assert!(text.contains(" | INFO | y\n"), "{text:?}");
    }
}
