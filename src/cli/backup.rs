//! `backup`: a copy of the database that is in use, with a bar on a terminal.

use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use tidewater_actors::sqlite::Copied;

use super::rows::{Outcome, answered, failed, watched};
use super::{Answered, Exit, Output, on_one_line};
use crate::control::Request;
use crate::settings::Settings;

/// What `backup` takes.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  run_supervisor backup /var/backups/notes.db\n  \
                        run_supervisor backup --overwrite latest.db\n\n--json prints {path, bytes}.\n\
                        Exit status: 0 the copy is complete, 1 there is none, 2 usage, 3 not running.")]
pub struct BackupArgs {
    /// The file; it must not be there
    #[arg(value_name = "FILE")]
    pub path: PathBuf,
    /// Replace the file if it is there
    #[arg(long)]
    pub overwrite: bool,
    /// How to print
    #[command(flatten)]
    pub output: Output,
}

impl BackupArgs {
    /// Has the supervisor that runs make the copy. The error is the exit status with the reason.
    ///
    /// # Errors
    /// [`Exit::NotRunning`] where none runs, otherwise [`Exit::Failed`]; there is no copy then.
    pub fn run(&self, settings: &Settings) -> Result<Answered, (Exit, String)> {
        let path = std::path::absolute(&self.path)
            .map_err(|error| failed(format!("{}: {error}", self.path.display())))?;
        let request = Request::Backup { path, overwrite: self.overwrite };
        let copied: Copied = watched(settings, &request, &bar(), show)?;
        self.told(&copied)
    }

    fn told(&self, copied: &Copied) -> Outcome {
        let Copied { path, bytes } = copied;
        let text = format!("{bytes} bytes are in {}\n", on_one_line(&path.display().to_string()));
        answered(copied, &self.output, text)
    }
}

/// On standard error, and only where that is a terminal.
fn bar() -> ProgressBar {
    let template =
        "copying {wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

fn show(bar: &ProgressBar, status: &Value) {
    let copying = &status["sqlite"]["copying"];
    if let (Some(bytes), Some(of_bytes)) = (copying["bytes"].as_u64(), copying["of_bytes"].as_u64()) {
        bar.set_length(of_bytes);
        bar.set_position(bytes);
    }
}
