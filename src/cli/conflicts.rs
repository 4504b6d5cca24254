//! `conflicts`: what lost, and how it is brought back.

use clap::{Args, Subcommand};
use serde_json::Value;
use tidewater_actors::sqlite::{Conflict, ConflictPage, Restores};

use super::rows::{
    LONG_WAIT, Outcome, answered, bounded, call, failed, key, line, minutes, more, plain, put_field,
};
use super::{Answered, Exit, Output, on_one_line};
use crate::conflicts::Restored;
use crate::control::Request;
use crate::parked::LocalFile;
use crate::settings::Settings;

/// `conflicts`.
#[derive(Debug, Clone, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  run_supervisor conflicts\n  run_supervisor conflicts list note --limit 10\n  \
                  run_supervisor conflicts show 12\n  run_supervisor conflicts restore 12 13\n\n\
                  --json prints {total, rows}; show: one of the rows, which is {id, at, table, key, column, columns, \
                  base, local, cloud, kept, restores}; restore: {ids, refused}.\n\
                  Exit status: 0 done, 1 failed, or some could not be restored, 2 usage, 3 not running (restore only)."
)]
pub struct ConflictsArgs {
    /// What to do
    #[command(subcommand)]
    pub verb: Option<ConflictsVerb>,
    /// As `conflicts list`
    #[command(flatten)]
    pub list: ConflictsList,
}

/// What can be done with conflicts.
#[derive(Debug, Clone, Subcommand)]
pub enum ConflictsVerb {
    /// List them, the newest first; works without a supervisor
    List(ConflictsList),
    /// Everything about one of them; works without a supervisor
    Show {
        /// Its number in the list
        #[arg(value_name = "NUMBER")]
        id: i64,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// Bring back what lost, as an edit of now
    Restore {
        /// Their numbers in the list
        #[arg(value_name = "NUMBER", required = true)]
        ids: Vec<i64>,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
}

/// `conflicts list`.
#[derive(Debug, Clone, Args)]
pub struct ConflictsList {
    /// Only this table
    #[arg(value_name = "TABLE")]
    pub table: Option<String>,
    /// The most to list
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = bounded)]
    pub limit: usize,
    /// Only such as are older than this number
    #[arg(long, value_name = "NUMBER")]
    pub before: Option<i64>,
    /// How to print
    #[command(flatten)]
    pub output: Output,
}

impl ConflictsArgs {
    pub(super) fn run(&self, settings: &Settings) -> Outcome {
        match &self.verb {
            None => list(settings, &self.list),
            Some(ConflictsVerb::List(args)) => list(settings, args),
            Some(ConflictsVerb::Show { id, output }) => show(settings, *id, output),
            Some(ConflictsVerb::Restore { ids, output }) => restore(settings, ids, output),
        }
    }
}

fn list(settings: &Settings, args: &ConflictsList) -> Outcome {
    let file = LocalFile::open(settings).map_err(failed)?;
    let page = file.conflicts(args.table.as_deref(), args.before, args.limit).map_err(failed)?;
    answered(&page, &args.output, render(&page))
}

fn show(settings: &Settings, id: i64, output: &Output) -> Outcome {
    let file = LocalFile::open(settings).map_err(failed)?;
    let conflict = file.conflict(id).map_err(failed)?;
    let conflict = conflict.ok_or_else(|| failed(format!("there is no conflict of the number {id}")))?;
    answered(&conflict, output, render_one(&conflict))
}

fn restore(settings: &Settings, ids: &[i64], output: &Output) -> Outcome {
    let restored: Restored = call(settings, &Request::RestoreConflicts { ids: ids.to_vec() }, LONG_WAIT)?;
    let mut text = match restored.ids.len() {
        1 => "1 is restored, as an edit of now\n".to_owned(),
        count => format!("{count} are restored, as edits of now\n"),
    };
    for (id, why) in &restored.refused {
        text += &format!("{id}: {}\n", on_one_line(why));
    }
    let done = answered(&restored, output, text)?;
    let exit = if restored.refused.is_empty() { Exit::Success } else { Exit::Failed };
    Ok(Answered { exit, ..done })
}

fn render(page: &ConflictPage) -> String {
    if page.total == 0 {
        return "no conflicts\n".into();
    }
    let mut text = match page.total {
        1 => "1 conflict\n".to_owned(),
        total => format!("{total} conflicts\n"),
    };
    for conflict in &page.rows {
        let column = conflict.column.as_deref().unwrap_or("the whole row");
        let (table, column) = (on_one_line(&conflict.table), on_one_line(column));
        line(&mut text, &format!("{:>5}  {table} {}  {column}", conflict.id, key(&conflict.key)));
        let (kept, lost) = sides(conflict);
        line(&mut text, &format!("       kept {kept}, lost {lost}"));
        line(&mut text, &format!("       {}", minutes(&conflict.at)));
    }
    more(&mut text, page.rows.len(), page.total);
    text
}

/// Whose was kept, and whose lost, each with its value.
fn sides(conflict: &Conflict) -> (String, String) {
    let value = |value: &Option<Value>| value.as_ref().map_or_else(|| "deleted".to_owned(), plain);
    let (here, there) =
        (format!("here: {}", value(&conflict.local)), format!("the cloud's: {}", value(&conflict.cloud)));
    match conflict.kept.as_str() {
        "cloud" => (there, here),
        "neither" => ("what the app made of both".to_owned(), format!("{here}, {there}")),
        _ => (here, there),
    }
}

/// Everything about one; what is long goes on in the next line.
fn render_one(conflict: &Conflict) -> String {
    let mut text = String::new();
    let mut field = |name: &str, value: &str| put_field(&mut text, name, value);
    let (kept, lost) = sides(conflict);
    field("number", &conflict.id.to_string());
    field("table", &conflict.table);
    field("key", &key(&conflict.key));
    field("column", conflict.column.as_deref().unwrap_or("the whole row"));
    field("kept", &kept);
    field("lost", &lost);
    if let Some(base) = &conflict.base {
        field("before", &plain(base));
    }
    field("when", &minutes(&conflict.at));
    field("restore", &format!("run_supervisor conflicts restore {}", conflict.id));
    if conflict.restores == Restores::Deletion {
        field("", "deletes the whole row, here and in the cloud, and what goes along with it");
    }
    text
}
