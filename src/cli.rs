//! The command line, the exit statuses, and what `status` looks like.
//!
//! Parts: [`Cli`] and [`Verb`] (clap), [`Cli::settings`] (flags are the strongest layer), [`Exit`] (every exit
//! status), [`render_status`] (a page of text from the JSON of a running supervisor), `rows.rs` (the verbs that take rows to
//! the cloud, or list them), `backup.rs`, `adopt.rs` (the verb that says which cloud), `config.rs` (the settings), `cloud_sql.rs` (what an
//! administrator runs), `sign.rs` (what `doctor` shows while it looks), `install.rs` (what a shell and `man` want to know).

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anstyle::{AnsiColor, Style};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize as _;
use serde_json::Value;
use tidewater_actors::core::doctor::size;
use tidewater_actors::core::progress::Progress;
use tidewater_actors::messages::Forced;

use crate::settings::{Settings, SettingsError, Sources};

mod adopt;
mod backup;
mod cloud_sql;
mod config;
mod conflicts;
mod install;
mod rows;
mod sign;

pub use adopt::{AdoptArgs, render as render_adoption};
pub use backup::BackupArgs;
pub use cloud_sql::CloudSqlArgs;
pub use config::{ConfigArgs, ConfigPage};
pub use conflicts::{ConflictsArgs, ConflictsList, ConflictsVerb};
pub use install::InstallVerb;
pub use rows::{Answered, ParkedArgs, ParkedList, ParkedVerb, PendingArgs, RowsVerb, SyncArgs, call};
pub use sign::Sign;

/// The width that fits every terminal.
const COLUMNS_MAX: usize = 80;

/// SQLite first, synced with Cloud SQL for PostgreSQL when it is there. Without a verb it runs until SIGINT or
/// SIGTERM; with one it talks to the supervisor that runs on the same database.
#[derive(Debug, Parser)]
#[command(
    name = "run_supervisor",
    version,
    max_term_width = 80,
    after_help = "Examples:\n  run_supervisor --database notes.db\n  \
                  CLOUD_SQL_DATABASE=orders CLOUD_SQL_USER=app run_supervisor --config /etc/tidewater.toml\n  \
                  run_supervisor status --watch\n  run_supervisor doctor\n\n\
                  Exit status: 0 success, 1 could not start or failed, 2 usage or bad setting, 3 not running, \
                  4 restart budget spent.\nSIGINT and SIGTERM end it in good order, SIGHUP makes it read its settings again.\n\
                  The log goes to standard error."
)]
pub struct Cli {
    /// A TOML file with settings, over the built-in ones and under the environment
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// The SQLite file [TIDEWATER_DATABASE, default tidewater.db]
    #[arg(long, value_name = "FILE", global = true)]
    pub database: Option<String>,
    /// A folder of numbered .sql files to apply at the start [TIDEWATER_SQLITE__MIGRATIONS, default none]
    #[arg(long, value_name = "DIR", global = true)]
    pub migrations: Option<String>,
    /// How the log looks
    #[arg(long, value_name = "FORMAT", global = true, value_parser = ["text", "json"])]
    pub log_format: Option<String>,
    /// What to ask the supervisor that runs
    #[command(subcommand)]
    pub verb: Option<Verb>,
}

/// The verbs.
#[derive(Debug, Clone, Subcommand)]
pub enum Verb {
    /// What the running supervisor does
    Status(StatusArgs),
    /// Check the proxy now and say what was found; status 1 if it is required and not available
    #[command(
        after_help = "Examples:\n  run_supervisor check\n  run_supervisor check --json | jq -r .detail\n\n\
                            --json prints {status, detail, proxy_required}.\n\
                            Exit status: 0 checked, 1 failed, or the proxy is required and not available, 2 usage, 3 not running."
    )]
    Check(Output),
    /// Forget failures and waits, end a pause, and check at once
    #[command(after_help = "Examples:\n  run_supervisor reset\n\n--json prints {done}.\n\
                            Exit status: 0 done, 1 failed, 2 usage, 3 not running.")]
    Reset(Output),
    /// Hold the circuit breaker open or closed, or let it decide by itself again
    #[command(after_help = "Examples:\n  run_supervisor circuit open      make no call to the cloud\n  \
                            run_supervisor circuit auto      as it was\n\n--json prints {done}.\n\
                            Exit status: 0 done, 1 failed, 2 usage, 3 not running.")]
    Circuit {
        /// How to hold it
        #[arg(value_enum)]
        hold: Hold,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// Look at the file, the way to the cloud and the cloud: a line each, green or red, with the remedy
    #[command(
        long_about = "Looks at everything that a sync depends on, and changes nothing: a line each, green (✓), red (✗) or \
                      not looked at (–), with the remedy below the red ones. It works with and without a running \
                      supervisor; without one it makes one attempt to connect.",
        after_help = "Examples:\n  run_supervisor doctor\n  run_supervisor doctor --json | jq '.checks[] | select(.mark == \"red\")'\n\n\
                      Exit status: 0 nothing is red, 1 something is, 2 usage or bad setting.\n\
                      --json prints {red, green, not_looked_at, checks: [{check, mark, finding, details, remedy}]}:\n\
                      mark is green, red or not_looked_at; remedy is null or {text, shell?, sql?}, with shell for a\n\
                      command of this machine's and sql for statements of PostgreSQL's that do it."
    )]
    Doctor(Output),
    /// The verbs about rows
    #[command(flatten)]
    Rows(RowsVerb),
    /// Say that this database belongs to the cloud that answers now
    Adopt(AdoptArgs),
    /// Print what an administrator has to run in the cloud for a role that may create nothing there
    CloudSql(CloudSqlArgs),
    /// The settings: each with its value, where that came from and what is allowed
    Config(ConfigArgs),
    /// The verbs for those who install it
    #[command(flatten)]
    Install(InstallVerb),
    /// Copy the database to a file, complete or not at all, while it is in use
    Backup(BackupArgs),
}

/// `status`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  run_supervisor status\n  run_supervisor status --watch\n  \
                        run_supervisor status --json | jq .sync.pending\n\n\
                        --json prints {readiness, proxy, circuit, sync, sqlite, http, actors}; with --watch one such \
                        object per line, or {error}.\n\
                        Exit status: 0 it answered, 1 it did not, 2 usage, 3 not running.")]
pub struct StatusArgs {
    /// Look again and again until ctrl-C; on a terminal in place, otherwise each time that something changed
    #[arg(long)]
    pub watch: bool,
    /// How to print
    #[command(flatten)]
    pub output: Output,
}

/// How a verb prints.
#[derive(Debug, Clone, Args)]
pub struct Output {
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// How the circuit is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Hold {
    /// By itself: calls and the watcher decide
    Auto,
    /// Open: no call to the cloud is made
    Open,
    /// Closed: calls are made whatever the breaker would count
    Closed,
}

impl Hold {
    /// As the circuit breaker names it.
    #[must_use]
    pub fn forced(self) -> Option<Forced> {
        match self {
            Self::Auto => None,
            Self::Open => Some(Forced::Open),
            Self::Closed => Some(Forced::Closed),
        }
    }

    /// What has been done, in a line.
    #[must_use]
    pub fn done(self) -> &'static str {
        match self {
            Self::Auto => "the circuit decides by itself",
            Self::Open => "the circuit is held open",
            Self::Closed => "the circuit is held closed",
        }
    }
}

impl Cli {
    /// Loads the settings: the layers below, then the flags. `environment` is the process's, or a test's.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn settings(&self, environment: Sources) -> Result<Settings, SettingsError> {
        self.sources(environment).build()
    }

    /// Where the settings come from.
    #[must_use]
    pub fn sources(&self, environment: Sources) -> Sources {
        let mut sources = environment;
        if let Some(path) = &self.config {
            sources = sources.config_file(path);
        }
        if let Some(path) = &self.database {
            sources = sources.flag("--database", "sqlite.path", path);
        }
        if let Some(folder) = &self.migrations {
            sources = sources.flag("--migrations", "sqlite.migrations", folder);
        }
        if let Some(format) = &self.log_format {
            sources = sources.flag("--log-format", "log.format", format);
        }
        sources
    }
}

/// Every exit status of `run_supervisor`. (A second SIGINT or SIGTERM ends it with 130 or 143.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It did what was asked; an orderly end after SIGINT or SIGTERM is that, too.
    Success = 0,
    /// It could not start, or the verb failed.
    Failed = 1,
    /// An unknown flag or verb, or a setting that is not allowed.
    Usage = 2,
    /// A verb found no supervisor.
    NotRunning = 3,
    /// The actors failed more often than the restart budget allows.
    BudgetSpent = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        // The discriminants are the documented numbers.
        Self::from(exit as u8)
    }
}

/// The status page: at most 80 columns, the most important line first. Fields that are missing are left out,
/// so that a verb of one version can show the status of another. Colours say what is well and what is not; the words do so too.
#[must_use]
pub fn render_status(status: &Value, coloured: bool) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    render_status_at(status, coloured, now)
}

/// `now` counts from 1970.
fn render_status_at(status: &Value, coloured: bool, now: Duration) -> String {
    let [proxy, circuit, sync, sqlite] = ["proxy", "circuit", "sync", "sqlite"].map(|key| &status[key]);
    let mut page = Page { text: String::new(), coloured };

    for reason in status["readiness"]["reasons"].as_array().into_iter().flatten() {
        page.row("not ready", vec![reason.as_str().map(|reason| bad(on_one_line(reason)))]);
    }
    if sync["state"] == "" {
        // Nobody has answered, or counted: its numbers mean nothing.
        page.row("sync", vec![Some(doubtful("-".to_owned())), plain(word(sync, "detail"))]);
    } else {
        let parked = counted(sync, "parked");
        page.row(
            "sync",
            vec![
                word(sync, "state").map(|state| match state.as_str() {
                    "blocked" => bad(state),
                    "offline" => doubtful(state),
                    _ => good(state),
                }),
                plain(counted(sync, "pending")),
                if amount(sync, "parked") > Some(0) { parked.map(doubtful) } else { plain(parked) },
                plain(counted(sync, "conflicts")),
            ],
        );
        page.row(
            "",
            vec![
                plain(amount(sync, "rows_flushed").map(|n| format!("{n} rows flushed"))),
                plain(amount(sync, "rows_warmed").map(|n| format!("{n} rows warmed"))),
            ],
        );

        let progress = Progress::deserialize(&sync["progress"]).ok();
        page.row("", vec![plain(progress.map(|progress| on_one_line(&progress.to_string())))]);

        let oldest = sync["backlog"]["oldest_age_s"].as_f64();
        let bytes = sync["backlog"]["bytes"].as_u64().filter(|bytes| *bytes > 0);
        page.row(
            "",
            vec![
                plain(oldest.map(|age| format!("the oldest has waited for {}", in_words(age)))),
                plain(bytes.map(|bytes| format!("{bytes} bytes of journal"))),
            ],
        );
    }

    let is_required = proxy["proxy_required"].as_bool().unwrap_or(false);
    page.row(
        "proxy",
        vec![
            word(proxy, "status").map(|status| match status.as_str() {
                "available" => good(status),
                _ if is_required => bad(status),
                _ => doubtful(status),
            }),
            plain(word(proxy, "endpoint")),
            plain(word(proxy, "environment")),
            plain(is_required.then(|| "required".to_owned())),
        ],
    );
    page.row("", vec![plain(word(proxy, "detail"))]);
    page.row("", vec![plain(failures(proxy))]);
    let ago = |key: &str, what: &str| match &proxy[key] {
        Value::Null => None,
        at => Some(format!("{what} {} ago", in_words(now.as_secs_f64() - at.as_f64()?))),
    };
    page.row("", vec![plain(ago("last_check", "last check")), plain(ago("last_success", "last success"))]);

    let state = word(circuit, "state").map(|state| match state.as_str() {
        "" => doubtful("-".to_owned()),
        "closed" => good(state),
        _ => doubtful(state),
    });
    page.row("circuit", vec![state, plain(word(circuit, "reason"))]);
    let journal = word(sqlite, "journal_mode").map(|mode| format!("{mode} mode"));
    page.row("sqlite", vec![plain(word(sqlite, "path")), plain(journal)]);
    let copying = &sqlite["copying"];
    let copied = amount(copying, "bytes").zip(amount(copying, "of_bytes"));
    let copied = copied.map(|(bytes, of)| format!("copying it: {} of {}", size(bytes), size(of)));
    page.row("", vec![plain(copied)]);
    page.row("http", vec![plain(word(&status["http"], "listen"))]);

    for (n, actor) in status["actors"].as_array().into_iter().flatten().enumerate() {
        let name = word(actor, "name").map(|name| format!("{name:<16}"));
        page.row(
            if n == 0 { "actors" } else { "" },
            vec![
                plain(name),
                word(actor, "state").map(|state| if state == "running" { good(state) } else { bad(state) }),
                some(actor, "restarts", "restart", "restarts").map(doubtful),
                some(actor, "panics", "panic", "panics").map(doubtful),
                plain(some(actor, "mailbox", "caller waits", "callers wait")),
            ],
        );
        page.row("", vec![plain(last_panic(&actor["last_panic"]))]);
    }
    page.text
}

/// A part of a line, and how it looks in colour.
struct Part {
    text: String,
    style: Style,
}

fn plain(text: Option<String>) -> Option<Part> {
    text.map(|text| Part { text, style: Style::new() })
}

/// As it should be.
fn good(text: String) -> Part {
    Part { text, style: AnsiColor::Green.on_default() }
}

/// Somebody may want to know.
fn doubtful(text: String) -> Part {
    Part { text, style: AnsiColor::Yellow.on_default() }
}

/// Somebody has to do something.
fn bad(text: String) -> Part {
    Part { text, style: AnsiColor::Red.on_default().bold() }
}

/// Where the last panic was, and what it said.
fn last_panic(panic: &Value) -> Option<String> {
    let [place, text] = ["location", "message"].map(|key| word(panic, key).filter(|it| !it.is_empty()));
    match (place, text) {
        (Some(place), Some(text)) => Some(format!("  panicked at {place}: {text}")),
        (Some(place), None) => Some(format!("  panicked at {place}")),
        (None, text) => Some(format!("  panicked: {}", text?)),
    }
}

/// What the failures mean for the next check.
fn failures(proxy: &Value) -> Option<String> {
    let failures = amount(proxy, "consecutive_failures").filter(|n| *n > 0)?;
    let next = match (proxy["paused"].as_bool(), proxy["current_retry_delay"].as_f64()) {
        (Some(true), _) => "checks are paused until something listens".to_owned(),
        (_, Some(delay)) => format!("retry delay {}", in_words(delay)),
        _ => String::new(),
    };
    let noun = if failures == 1 { "failure" } else { "failures in a row" };
    Some(format!("{failures} {noun}, {next}").trim_end_matches(", ").to_owned())
}

struct Page {
    text: String,
    coloured: bool,
}

impl Page {
    /// One line, its parts two spaces apart; none when there are no parts. What goes past the last column
    /// is cut and marked.
    fn row(&mut self, title: &str, parts: Vec<Option<Part>>) {
        let mut parts: Vec<Part> = parts.into_iter().flatten().filter(|part| !part.text.is_empty()).collect();
        let Some(last) = parts.last_mut() else { return };
        last.text.truncate(last.text.trim_end().len());
        let columns = |text: &str| text.chars().count();
        let title = format!("{title:<8} ");
        let gaps = 2 * (parts.len() - 1);
        let whole = columns(&title) + gaps + parts.iter().map(|part| columns(&part.text)).sum::<usize>();
        // A column is kept for the mark where not everything fits.
        let mut left = if whole > COLUMNS_MAX { COLUMNS_MAX - 1 } else { COLUMNS_MAX };
        let mut put = |text: &str, style: Style| {
            let shown: String = text.chars().take(left).collect();
            left -= columns(&shown);
            match self.coloured && style != Style::new() && !shown.is_empty() {
                true => self.text += &format!("{style}{shown}{style:#}"),
                false => self.text += &shown,
            }
        };
        put(&title, Style::new());
        for (n, Part { text, style }) in parts.iter().enumerate() {
            put(if n == 0 { "" } else { "  " }, Style::new());
            put(text, *style);
        }
        if whole > COLUMNS_MAX {
            self.text.push('…');
        }
        self.text.push('\n');
    }
}

fn word(part: &Value, key: &str) -> Option<String> {
    part[key].as_str().map(on_one_line)
}

/// Whatever it holds: a terminal obeys control characters.
#[must_use]
pub fn on_one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Broken into lines between words; a word that is longer than a line is broken itself.
pub(crate) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let length = |text: &str| text.chars().count();
    let mut lines: Vec<String> = vec![];
    let mut line = String::new();
    for mut word in text.split(' ') {
        if !line.is_empty() && length(&line) + 1 + length(word) > width {
            lines.push(std::mem::take(&mut line));
        } else if !line.is_empty() {
            line.push(' ');
        }
        // Only a word at the beginning of its line can be too long.
        while length(word) > width {
            let end = word.char_indices().nth(width).map_or(word.len(), |(at, _)| at);
            // Behind a dot, where names of PostgreSQL's may be broken.
            let at = word[..end].rfind('.').map_or(end, |dot| dot + 1);
            lines.push(word[..at].to_owned());
            word = &word[at..];
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

fn amount(part: &Value, key: &str) -> Option<u64> {
    part[key].as_u64()
}

fn counted(part: &Value, key: &str) -> Option<String> {
    Some(format!("{} {key}", amount(part, key)?))
}

/// How many, in words; nothing for none.
fn some(part: &Value, key: &str, one: &str, many: &str) -> Option<String> {
    let n = amount(part, key).filter(|n| *n > 0)?;
    Some(format!("{n} {}", if n == 1 { one } else { many }))
}

/// Seconds as people say them, never more exact than they care.
fn in_words(seconds: f64) -> String {
    // A clock that was set back makes "in the future"; nobody is helped by a minus sign.
    match seconds.max(0.0) {
        s if s < 10.0 && s.fract() > 0.05 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use serde_json::json;

    use super::*;
    use crate::settings::LogFormat;

    fn offline() -> Value {
        json!({
            "proxy": {
                "status": "unavailable", "endpoint": "127.0.0.1:5432", "consecutive_failures": 5,
                "current_retry_delay": 160.0, "should_retry": false, "paused": true,
                "environment": "development", "proxy_required": false,
                "last_check": 1_000_000_000.0, "last_success": null,
                "detail": "Proxy not running on 127.0.0.1:5432",
            },
            "readiness": {"ready": false, "reasons": ["CloudSyncer is restarting"]},
            "circuit": {"state": "open", "reason": "not_running"},
            "sync": {"state": "offline", "pending": 12, "parked": 0, "conflicts": 1, "rows_flushed": 340, "rows_warmed": 7,
                     "backlog": {"entries": 12, "bytes": 480, "oldest_age_s": 300.0}},
            "sqlite": {"path": "tidewater.db", "journal_mode": "wal"},
            "actors": [
                {"name": "proxy_watcher", "state": "running", "restarts": 0},
                {"name": "cloud_syncer", "state": "restarting", "restarts": 2},
            ],
        })
    }

    /// The page as people see it.
    #[test]
    fn the_status_page_is_read_at_a_glance() {
        let page = render_status_at(&offline(), false, Duration::from_secs(1_000_000_095));
        let expected = "\
not ready CloudSyncer is restarting
sync     offline  12 pending  0 parked  1 conflicts
         340 rows flushed  7 rows warmed
         the oldest has waited for 5 min  480 bytes of journal
proxy    unavailable  127.0.0.1:5432  development
         Proxy not running on 127.0.0.1:5432
         5 failures in a row, checks are paused until something listens
         last check 95 s ago
circuit  open  not_running
sqlite   tidewater.db  wal mode
actors   proxy_watcher     running
         cloud_syncer      restarting  2 restarts
";
        assert_eq!(page, expected);
    }

    /// Who does not answer has no numbers, and above all no zeros.
    #[test]
    fn who_does_not_answer_is_not_said_to_have_nothing() {
        let mut status = offline();
        status["sync"] = serde_json::to_value(tidewater_actors::messages::SyncReport::default()).unwrap();
        status["circuit"]["state"] = "".into();
        let page = render_status_at(&status, false, Duration::from_secs(1_000_000_095));
        assert!(page.contains("sync     -\nproxy") && page.contains("circuit  -  not_running\n"), "{page}");
        status["sync"]["detail"] = "the rows are still being counted".into();
        let page = render_status_at(&status, false, Duration::from_secs(1_000_000_095));
        assert!(page.contains("sync     -  the rows are still being counted\nproxy"), "{page}");
    }

    /// An actor that panicked says how often, where and with which text, and who waits for it is counted; the others say
    /// nothing of it. A long text is cut, one of several lines is one.
    #[test]
    fn an_actor_that_panicked_says_where_and_why() {
        let panic = json!({
            "location": "actors/src/cloud_syncer.rs:300:5", "message_type": "SyncNow", "at": 1_000_000_000,
            "message": "index out of bounds: the len is 3 but\nthe index is 3, and more",
        });
        let actors = json!({"actors": [
            {"name": "ProxyWatcher", "state": "running", "restarts": 0, "panics": 0, "mailbox": 0, "last_panic": null},
            {"name": "SqliteWriter", "state": "running", "restarts": 1, "panics": 1, "mailbox": 1,
             "last_panic": {"location": "a.rs:1:2", "message": "boom"}},
            {"name": "CloudSyncer", "state": "restarting", "restarts": 2, "panics": 3, "mailbox": 12, "last_panic": panic},
        ]});
        let expected = "\
actors   ProxyWatcher      running
         SqliteWriter      running  1 restart  1 panic  1 caller waits
           panicked at a.rs:1:2: boom
         CloudSyncer       restarting  2 restarts  3 panics  12 callers wait
           panicked at actors/src/cloud_syncer.rs:300:5: index out of bounds: t…
";
        assert_eq!(render_status(&actors, false), expected);
    }

    /// A panic without a place, or without a text, is told as far as it is known.
    #[test]
    fn half_a_panic_is_shown_as_far_as_it_goes() {
        let page =
            |panic| render_status(&json!({"actors": [{"name": "CloudSyncer", "last_panic": panic}]}), false);
        assert!(page(json!({"message": "boom", "location": ""})).ends_with("\n           panicked: boom\n"));
        assert!(page(json!({"location": "a.rs:1:2"})).ends_with("\n           panicked at a.rs:1:2\n"));
        for nothing in [json!({}), json!(null), json!("boom")] {
            assert_eq!(page(nothing), "actors   CloudSyncer\n");
        }
    }

    /// The page in colour, as a terminal gets it: what is well, what somebody may want to know, what is not well. Without the
    /// colours it is the same page.
    #[test]
    fn the_status_page_in_colour() {
        let mut status = offline();
        status["sync"]["parked"] = json!(2);
        let at = Duration::from_secs(1_000_000_095);
        let page = render_status_at(&status, true, at);
        let expected = "\
not ready ⟦1;31⟧CloudSyncer is restarting⟦0⟧
sync     ⟦33⟧offline⟦0⟧  12 pending  ⟦33⟧2 parked⟦0⟧  1 conflicts
         340 rows flushed  7 rows warmed
         the oldest has waited for 5 min  480 bytes of journal
proxy    ⟦33⟧unavailable⟦0⟧  127.0.0.1:5432  development
         Proxy not running on 127.0.0.1:5432
         5 failures in a row, checks are paused until something listens
         last check 95 s ago
circuit  ⟦33⟧open⟦0⟧  not_running
sqlite   tidewater.db  wal mode
actors   proxy_watcher     ⟦32⟧running⟦0⟧
         cloud_syncer      ⟦1;31⟧restarting⟦0⟧  ⟦33⟧2 restarts⟦0⟧
";
        // anstyle writes bold and the colour one after the other.
        let shown = page.replace("\x1b[1m\x1b[31m", "⟦1;31⟧").replace("\x1b[", "⟦");
        let shown = ["0", "31", "32", "33"]
            .iter()
            .fold(shown, |text, code| text.replace(&format!("⟦{code}m"), &format!("⟦{code}⟧")));
        assert_eq!(shown, expected);
        let plain = ["⟦1;31⟧", "⟦0⟧", "⟦32⟧", "⟦33⟧"].iter().fold(shown, |text, code| text.replace(code, ""));
        assert_eq!(plain, render_status_at(&status, false, at));
    }

    /// Work that comes in many parts says how far it is, on the line below the counts.
    #[test]
    fn long_work_says_how_far_it_is() {
        let mut status = offline();
        status["sync"]["progress"] = json!({
            "work": "first_sync", "table": "note", "rows": 120_000, "rows_left": 380_000, "rows_per_s": 4000.0, "left_s": 95.0,
        });
        let page = render_status(&status, false);
        let line = "\n         comparing note: 120000 rows, 4000/s, some 95 s for about 380000 more\n";
        assert!(page.contains(line), "{page}");
        status["sync"]["progress"] =
            json!({"work": "flush", "rows": 10, "rows_left": null, "rows_per_s": 2.0, "left_s": null});
        assert!(render_status(&status, false).contains("\n         flushing: 10 rows, 2/s\n"));
        status["sqlite"]["copying"] = json!({"bytes": 3 << 20, "of_bytes": 5_u64 << 30});
        let page = render_status(&status, false);
        assert!(
            page.contains("sqlite   tidewater.db  wal mode\n         copying it: 3.0 MiB of 5.0 GiB\n"),
            "{page}"
        );
    }

    /// A healthy system says nothing of failures, and of retries only while there are any.
    #[test]
    fn a_healthy_page_does_not_speak_of_failures() {
        let mut status = offline();
        status["proxy"]["status"] = json!("available");
        status["proxy"]["paused"] = json!(false);
        status["proxy"]["consecutive_failures"] = json!(0);
        let page = render_status_at(&status, false, Duration::from_secs(1_000_000_000));
        assert!(!page.contains("failure"), "{page}");
        status["proxy"]["consecutive_failures"] = json!(1);
        let page = render_status_at(&status, false, Duration::from_secs(1_000_000_000));
        assert!(page.contains("1 failure, retry delay 3 min\n"), "{page}");
    }

    /// Whatever the fields hold, no line is wider than a terminal and none moves its cursor.
    #[test]
    fn the_page_never_exceeds_eighty_columns() {
        let mut status = offline();
        status["sqlite"]["path"] = json!("ü".repeat(300));
        status["proxy"]["detail"] = json!("two\nlines \x1b[2J and more".repeat(20));
        let page = render_status(&status, false);
        assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
        assert!(page.lines().any(|line| line.ends_with('…')));
        assert!(!page.contains('\x1b'));
        assert_eq!(page.lines().count(), render_status(&offline(), false).lines().count());
    }

    /// The answer of another version, or nonsense, is shown as far as it goes.
    #[test]
    fn a_status_with_other_fields_is_shown_as_far_as_it_goes() {
        assert_eq!(render_status(&json!({}), true), "");
        assert_eq!(render_status(&json!([1, 2]), true), "");
        assert_eq!(
            render_status(&json!({"sync": {"state": "idle", "pending": "many"}, "actors": 3}), false),
            "sync     idle\n"
        );
    }

    /// Durations are as exact as people care.
    #[test]
    fn durations_are_said_as_people_say_them() {
        let table = [
            (-5.0, "0 s"),
            (0.0, "0 s"),
            (2.5, "2.5 s"),
            (10.0, "10 s"),
            (119.0, "119 s"),
            (600.0, "10 min"),
            (10_800.0, "3 h"),
            (259_200.0, "3 days"),
        ];
        for (seconds, words) in table {
            assert_eq!(in_words(seconds), words);
        }
    }

    /// Flags are understood before and after the verb, and win over variables.
    #[test]
    fn flags_win_over_variables() {
        Cli::command().debug_assert();
        let line = ["run_supervisor", "--log-format", "json", "status", "--json", "--database", "flag.db"];
        let cli = Cli::try_parse_from(line).unwrap();
        assert!(matches!(
            &cli.verb,
            Some(Verb::Status(StatusArgs { watch: false, output: Output { json: true } }))
        ));
        let settings =
            cli.settings(Settings::builder().environment([("TIDEWATER_DATABASE", "variable.db")])).unwrap();
        assert_eq!(settings.sqlite.path, PathBuf::from("flag.db"));
        assert_eq!(settings.log.format, LogFormat::Json);
    }

    /// A flag's bad value is reported with the flag as its source.
    #[test]
    fn a_bad_flag_is_named() {
        let cli = Cli::try_parse_from(["run_supervisor", "--database", ":memory:"]).unwrap();
        let message = cli.settings(Settings::builder()).unwrap_err().to_string();
        assert!(message.contains("--database") && message.contains("sqlite.path"), "{message}");
    }

    /// Unknown flags and verbs are usage errors.
    #[test]
    fn unknown_flags_and_verbs_are_usage_errors() {
        for line in [
            &["run_supervisor", "--frobnicate"][..],
            &["run_supervisor", "explode"],
            &["run_supervisor", "--log-format", "xml"],
        ] {
            let error = Cli::try_parse_from(line).unwrap_err();
            assert_eq!(error.exit_code(), i32::from(Exit::Usage as u8));
        }
    }
}
