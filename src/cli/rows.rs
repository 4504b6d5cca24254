//! The verbs about rows: `flush` and `warm`, `pending`, `parked`; `conflicts.rs` has `conflicts`.
//!
//! Those that only look read the SQLite file, whether a supervisor runs or not; the others ask the one that runs.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tidewater_actors::messages::Discarded;
use tidewater_actors::sqlite::{ParkedPage, ParkedRow, PendingPage, Retried, Which};

use super::{COLUMNS_MAX, ConflictsArgs, Exit, Output, on_one_line};
use crate::control::{ControlClient, ControlError, Request, Synced};
use crate::parked::LocalFile;
use crate::settings::Settings;

/// Asking costs an actor's answer.
const WAIT: Duration = Duration::from_secs(10);

/// What the cloud takes its time for; who does not want to wait ends the verb.
pub(super) const LONG_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// Between two looks at how far it has come.
const LOOK: Duration = Duration::from_millis(200);

/// The verbs.
#[derive(Debug, Clone, Subcommand)]
pub enum RowsVerb {
    /// Take what waits to the cloud now
    Flush(SyncArgs),
    /// Bring home what others wrote, now
    Warm(SyncArgs),
    /// The rows that wait to be sent; works without a supervisor
    Pending(PendingArgs),
    /// The rows that the cloud refuses: list, show, retry, discard; without one of these: list
    Parked(ParkedArgs),
    /// What lost a conflict with another device: list, show, restore; without one of these: list
    Conflicts(ConflictsArgs),
}

/// `flush` and `warm`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  run_supervisor flush\n  run_supervisor flush --wait && echo everything is in the cloud\n  \
                        run_supervisor warm --wait --json | jq .rows_warmed\n\n\
                        --json prints {done, rows_flushed, rows_warmed, pending, parked}.\n\
                        Exit status: 0 begun, or with --wait done, 1 failed, 2 usage, 3 not running."
)]
pub struct SyncArgs {
    /// Wait until it is done; with a bar on a terminal
    #[arg(long)]
    pub wait: bool,
    /// How to print
    #[command(flatten)]
    pub output: Output,
}

/// `pending`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  run_supervisor pending\n  run_supervisor pending note --limit 500\n\n\
                        --json prints {total, rows}; a row is {table, key, change, columns, state, changed_at}.\n\
                        Exit status: 0 printed, 1 the file cannot be read, 2 usage.")]
pub struct PendingArgs {
    /// Only this table
    #[arg(value_name = "TABLE")]
    pub table: Option<String>,
    /// The most rows to list
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = bounded)]
    pub limit: usize,
    /// How to print
    #[command(flatten)]
    pub output: Output,
}

/// `parked`.
#[derive(Debug, Clone, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  run_supervisor parked\n  run_supervisor parked show 3\n  \
                  run_supervisor parked retry              all of them\n  run_supervisor parked retry --table note\n  \
                  run_supervisor parked discard 3 4\n\n\
                  --json prints {total, rows}; show: one of the rows, which is {id, table, key, change, sqlstate, message, \
                  constraint, values, first_refused, last_refused, tries, edited}; retry: {rows, unknown}; discard: {ids, \
                  refused}.\n\
                  Exit status: 0 done, 1 failed, or some numbers are unknown or refused, 2 usage, 3 not running (retry, \
                  discard)."
)]
pub struct ParkedArgs {
    /// What to do
    #[command(subcommand)]
    pub verb: Option<ParkedVerb>,
    /// As `parked list`
    #[command(flatten)]
    pub list: ParkedList,
}

/// What can be done with parked rows.
#[derive(Debug, Clone, Subcommand)]
pub enum ParkedVerb {
    /// List them; works without a supervisor
    List(ParkedList),
    /// Everything about one of them; works without a supervisor
    Show {
        /// Its number in the list
        #[arg(value_name = "NUMBER")]
        id: i64,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// Send them again; without numbers and --table: all of them
    Retry {
        /// Their numbers in the list
        #[arg(value_name = "NUMBER")]
        ids: Vec<i64>,
        /// Those of this table
        #[arg(long, value_name = "TABLE", conflicts_with = "ids")]
        table: Option<String>,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// Give them up: each becomes what it is in the cloud; what was here is kept in the conflict log
    Discard {
        /// Their numbers in the list
        #[arg(value_name = "NUMBER", required = true)]
        ids: Vec<i64>,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
}

/// `parked list`.
#[derive(Debug, Clone, Args)]
pub struct ParkedList {
    /// Only this table
    #[arg(value_name = "TABLE")]
    pub table: Option<String>,
    /// The most rows to list
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = bounded)]
    pub limit: usize,
    /// Only rows behind this number
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub after: i64,
    /// How to print
    #[command(flatten)]
    pub output: Output,
}

/// A list is read by people, or by scripts page by page.
pub(super) fn bounded(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(limit @ 1..=10_000) => Ok(limit),
        _ => Err("a number from 1 to 10000 is allowed".into()),
    }
}

/// What a verb has to say on standard output.
#[derive(Debug)]
pub struct Answered {
    /// The text, or the JSON.
    pub text: String,
    /// The status with which it ends.
    pub exit: Exit,
}

pub(super) type Outcome = Result<Answered, (Exit, String)>;

impl RowsVerb {
    /// Does it. The error is the exit status with the reason.
    ///
    /// # Errors
    /// [`Exit::NotRunning`] where it takes a supervisor and none runs, otherwise [`Exit::Failed`].
    pub fn run(&self, settings: &Settings) -> Result<Answered, (Exit, String)> {
        match self {
            Self::Flush(args) => sync(settings, args, true),
            Self::Warm(args) => sync(settings, args, false),
            Self::Pending(args) => pending(settings, args),
            Self::Conflicts(args) => args.run(settings),
            Self::Parked(ParkedArgs { verb, list }) => match verb {
                None => parked(settings, list),
                Some(ParkedVerb::List(list)) => parked(settings, list),
                Some(ParkedVerb::Show { id, output }) => show(settings, *id, output),
                Some(ParkedVerb::Retry { ids, table, output }) => {
                    retry(settings, ids, table.as_deref(), output)
                }
                Some(ParkedVerb::Discard { ids, output }) => discard(settings, ids, output),
            },
        }
    }
}

pub(super) fn failed(error: impl std::fmt::Display) -> (Exit, String) {
    (Exit::Failed, error.to_string())
}

pub(super) fn answered<T: Serialize>(value: &T, output: &Output, text: String) -> Outcome {
    let text = match output.json {
        true => format!("{:#}\n", serde_json::to_value(value).map_err(failed)?),
        false => text,
    };
    Ok(Answered { text, exit: Exit::Success })
}

/// Asks the supervisor that runs. The error is the exit status with the reason, and with what helps where nobody runs.
///
/// # Errors
/// [`Exit::NotRunning`] where none does, otherwise [`Exit::Failed`].
pub fn call<T: DeserializeOwned>(
    settings: &Settings,
    request: &Request,
    wait: Duration,
) -> Result<T, (Exit, String)> {
    let socket = settings.sqlite.control_socket();
    let asked = match wait > WAIT {
        // Who does not answer the simplest question is not waited for until the end of the longest work.
        true => ControlClient::call(&socket, &Request::Status, WAIT).map(|_| ()),
        false => Ok(()),
    };
    let answer = asked.and_then(|()| ControlClient::call(&socket, request, wait));
    let answer = answer.map_err(|error| match error {
        ControlError::NotRunning(_) => {
            (Exit::NotRunning, format!("{error}; start `run_supervisor` on this database, and ask again"))
        }
        error => failed(error),
    })?;
    serde_json::from_value(answer).map_err(failed)
}

// ---------------------------------------------------------------------------------------------------------
// flush, warm
// ---------------------------------------------------------------------------------------------------------

fn sync(settings: &Settings, SyncArgs { wait, output }: &SyncArgs, flush: bool) -> Outcome {
    let wait = *wait;
    let request = if flush { Request::Flush { wait } } else { Request::Warm { wait } };
    let done: Synced = match wait {
        true => accompanied(settings, &request)?,
        false => call(settings, &request, WAIT)?,
    };
    let mut text = match (wait, flush) {
        (true, true) => format!("{} to the cloud", rows(done.rows_flushed, "went")),
        (true, false) => format!("{} from the cloud", rows(done.rows_warmed, "came")),
        (false, true) => "the flush has begun".to_owned(),
        (false, false) => "the warm-up has begun".to_owned(),
    };
    text += &format!("; {} pending, {} parked\n", done.pending, done.parked);
    if done.parked > 0 {
        text += "`run_supervisor parked` says which rows the cloud refuses, and why\n";
    }
    answered(&done, output, text)
}

/// Waits for the end of a flush or a warm-up, and shows on a terminal how far it has come.
fn accompanied(settings: &Settings, request: &Request) -> Result<Synced, (Exit, String)> {
    let flushing = matches!(request, Request::Flush { .. });
    let mut begun: Option<u64> = None;
    watched(settings, request, &bar(), move |bar, status| {
        let sync = &status["sync"];
        let amount = |key: &str| sync[key].as_u64().unwrap_or(0);
        let (moved, left) = match flushing {
            true => (amount("rows_flushed"), amount("pending")),
            // How many rows the cloud has is known, about, where a table is compared for the first time.
            false => (amount("rows_warmed"), sync["progress"]["rows_left"].as_u64().unwrap_or(0)),
        };
        let before = *begun.get_or_insert(moved);
        advance(bar, moved.saturating_sub(before), left);
        bar.set_message(sync["state"].as_str().unwrap_or_default().to_owned());
    })
}

/// Waits for the answer of something that takes long. Meanwhile, on a terminal, the status is looked at, and shown.
pub(super) fn watched<T: DeserializeOwned + Send>(
    settings: &Settings,
    request: &Request,
    bar: &ProgressBar,
    mut show: impl FnMut(&ProgressBar, &Value),
) -> Result<T, (Exit, String)> {
    thread::scope(|scope| {
        let (answer, answered) = mpsc::channel();
        scope.spawn(move || {
            // The other end waits for exactly this.
            let _ = answer.send(call(settings, request, LONG_WAIT));
        });
        let answer = loop {
            match answered.recv_timeout(LOOK) {
                Ok(answer) => break answer,
                Err(RecvTimeoutError::Timeout) if bar.is_hidden() => {}
                Err(RecvTimeoutError::Timeout) => {
                    // A look that fails is one that is not shown.
                    if let Ok(status) = call::<Value>(settings, &Request::Status, WAIT) {
                        show(bar, &status);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break Err(failed("the verb failed")),
            }
        };
        bar.finish_and_clear();
        answer
    })
}

/// On standard error, and only where that is a terminal.
fn bar() -> ProgressBar {
    let template = "{msg:>8} {wide_bar} {human_pos} of {human_len} rows, {rate}, {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let style = style.with_key("rate", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        // A bar that cannot be drawn is not drawn.
        let _ = write!(out, "{:.0}/s", state.per_sec());
    });
    ProgressBar::new(0).with_style(style)
}

/// What is written meanwhile makes it longer, not the way that is done shorter.
fn advance(bar: &ProgressBar, done: u64, left: u64) {
    bar.set_length(done + left);
    bar.set_position(done);
}

fn rows(count: u64, verb: &str) -> String {
    match (count, verb) {
        (1, "are") => "1 row is".into(),
        (1, "wait") => "1 row waits".into(),
        (1, verb) => format!("1 row {verb}"),
        (count, verb) => format!("{count} rows {verb}"),
    }
}

// ---------------------------------------------------------------------------------------------------------
// pending, parked
// ---------------------------------------------------------------------------------------------------------

fn pending(settings: &Settings, args: &PendingArgs) -> Outcome {
    let file = LocalFile::open(settings).map_err(failed)?;
    let page = file.pending(args.table.as_deref(), None, args.limit).map_err(failed)?;
    answered(&page, &args.output, render_pending(&page))
}

fn parked(settings: &Settings, list: &ParkedList) -> Outcome {
    let file = LocalFile::open(settings).map_err(failed)?;
    let page = file.parked(list.table.as_deref(), list.after, list.limit).map_err(failed)?;
    answered(&page, &list.output, render_parked(&page))
}

fn show(settings: &Settings, id: i64, output: &Output) -> Outcome {
    let file = LocalFile::open(settings).map_err(failed)?;
    let row = file.parked_row(id).map_err(failed)?;
    let row = row.ok_or_else(|| failed(format!("nothing is parked under the number {id}")))?;
    answered(&row, output, render_row(&row))
}

fn retry(settings: &Settings, ids: &[i64], table: Option<&str>, output: &Output) -> Outcome {
    let which = match (ids, table) {
        (_, Some(table)) => Which::Table(table.to_owned()),
        ([], None) => Which::All,
        (ids, None) => Which::Ids(ids.to_vec()),
    };
    let retried: Retried = call(settings, &Request::RetryParked { which }, WAIT)?;
    let mut text = format!("{} to be sent again\n", rows(retried.rows, "wait"));
    for id in &retried.unknown {
        text += &format!("{id}: nothing is parked under this number\n");
    }
    let done = answered(&retried, output, text)?;
    let exit = if retried.unknown.is_empty() { Exit::Success } else { Exit::Failed };
    Ok(Answered { exit, ..done })
}

fn discard(settings: &Settings, ids: &[i64], output: &Output) -> Outcome {
    let request = Request::DiscardParked { ids: ids.to_vec() };
    let discarded: Discarded = call(settings, &request, LONG_WAIT)?;
    let mut text = format!(
        "{} what the cloud has\n",
        match discarded.ids.len() {
            1 => "1 row is".to_owned(),
            count => format!("{count} rows are"),
        }
    );
    for (id, why) in &discarded.refused {
        text += &format!("{id}: {}\n", on_one_line(why));
    }
    let done = answered(&discarded, output, text)?;
    let exit = if discarded.refused.is_empty() { Exit::Success } else { Exit::Failed };
    Ok(Answered { exit, ..done })
}

/// `id=5 part=1`, on one line.
pub(super) fn key(key: &Value) -> String {
    let parts = key.as_object().into_iter().flatten().map(|(name, value)| format!("{name}={}", plain(value)));
    parts.collect::<Vec<_>>().join(" ")
}

/// A text without its quotes; anything else as JSON has it.
pub(super) fn plain(value: &Value) -> String {
    on_one_line(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

/// A line of at most 80 columns; what goes past them is cut and marked.
pub(super) fn line(text: &mut String, line: &str) {
    let line = line.trim_end();
    if line.chars().count() > COLUMNS_MAX {
        text.extend(line.chars().take(COLUMNS_MAX - 1));
        text.push('…');
    } else {
        text.push_str(line);
    }
    text.push('\n');
}

pub(super) fn more(text: &mut String, shown: usize, total: u64) {
    let left = total.saturating_sub(shown as u64);
    if left > 0 {
        text.push_str(&format!("and {left} more\n"));
    }
}

fn render_pending(page: &PendingPage) -> String {
    if page.total == 0 {
        return "nothing is pending\n".into();
    }
    let mut text = format!("{} to be sent\n", rows(page.total, "wait"));
    for row in &page.rows {
        let state = match row.state.as_str() {
            "waiting" => "",
            "in_flight" => "  in flight",
            "stays_here" => "  stays here",
            _ => "  needs others",
        };
        let columns = row.columns.join(", ");
        line(
            &mut text,
            &format!(
                "{:<6} {} {}{state}  {}",
                row.change,
                on_one_line(&row.table),
                key(&row.key),
                on_one_line(&columns)
            ),
        );
    }
    more(&mut text, page.rows.len(), page.total);
    text
}

fn render_parked(page: &ParkedPage) -> String {
    if page.total == 0 {
        return "nothing is parked\n".into();
    }
    let mut text = format!("{} parked\n", rows(page.total, "are"));
    for row in &page.rows {
        line(
            &mut text,
            &format!("{:>5}  {:<6} {} {}", row.id, row.change, on_one_line(&row.table), key(&row.key)),
        );
        let code = row.sqlstate.as_deref().unwrap_or("no fit");
        line(&mut text, &format!("       {code}  {}", on_one_line(&row.message)));
        let edited = if row.edited { ", edited since" } else { "" };
        line(
            &mut text,
            &format!("       refused {} since {}{edited}", times(row.tries), minutes(&row.first_refused)),
        );
    }
    more(&mut text, page.rows.len(), page.total);
    text
}

fn times(tries: u64) -> String {
    match tries {
        1 => "once".into(),
        2 => "twice".into(),
        tries => format!("{tries} times"),
    }
}

/// To the second, and in which time.
pub(super) fn minutes(at: &str) -> String {
    format!("{} UTC", at.get(..19).unwrap_or(at))
}

/// Everything about one row; what is long goes on in the next line.
fn render_row(row: &ParkedRow) -> String {
    let mut text = String::new();
    let mut field = |name: &str, value: &str| put_field(&mut text, name, value);
    field("number", &row.id.to_string());
    field("table", &row.table);
    field("key", &key(&row.key));
    field("change", &row.change);
    field(
        "sqlstate",
        row.sqlstate.as_deref().unwrap_or("none: the value was not sent, it does not fit its column"),
    );
    field("message", &row.message);
    field("constraint", row.constraint.as_deref().unwrap_or_default());
    field("refused", &times(row.tries));
    field("first", &minutes(&row.first_refused));
    field("last", &minutes(&row.last_refused));
    if row.edited {
        field("edited", "since then; it is tried again");
    }
    for (at, (name, value)) in row.values.iter().filter_map(Value::as_object).flatten().enumerate() {
        field(if at == 0 { "values" } else { "" }, &format!("{name} = {}", plain(value)));
    }
    text
}

pub(super) fn put_field(text: &mut String, name: &str, value: &str) {
    const INDENT: usize = 12;
    let value: Vec<char> = on_one_line(value).chars().collect();
    for (at, part) in value.chunks(COLUMNS_MAX - INDENT).enumerate() {
        let name = if at == 0 { name } else { "" };
        let part: String = part.iter().collect();
        text.push_str(format!("{name:<INDENT$}{part}").trim_end());
        text.push('\n');
    }
}
