//! `config`: every setting with its value, where that came from and what is allowed.

use anstyle::Style;
use clap::Args;
use serde::Deserialize as _;

use super::{COLUMNS_MAX, Exit, Output, on_one_line, wrapped};
use crate::control::{ControlClient, ControlError, Request};
use crate::settings::{Effective, Settings};

const INDENT: &str = "    ";

/// What `config` takes.
#[derive(Debug, Clone, Args)]
#[command(
    long_about = "Prints every setting with its value, where the value came from and what is allowed: those of the supervisor \
                  that runs on this database, or, where none runs, those with which one would start here. Passwords are never \
                  printed.",
    after_help = "Examples:\n  run_supervisor config\n  run_supervisor config sync proxy.port\n  run_supervisor config --changed\n\n\
                  --json prints a list of {key, value, origin, allowed}, all of them texts.\n\
                  Exit status: 0 printed, 1 the supervisor that runs does not answer, 2 usage or bad setting."
)]
pub struct ConfigArgs {
    /// Only these: a key, or a section
    #[arg(value_name = "KEY")]
    pub keys: Vec<String>,
    /// Only those that are not as they were built in
    #[arg(long)]
    pub changed: bool,
    /// How to print
    #[command(flatten)]
    pub output: Output,
}

/// What `config` has to say.
#[derive(Debug)]
pub struct ConfigPage {
    /// The text with its styles, or the JSON.
    pub text: String,
    /// Whose settings these are, where nobody runs.
    pub note: Option<String>,
}

impl ConfigArgs {
    /// Asks the supervisor that runs; where none does, `settings` are what there is.
    ///
    /// # Errors
    /// The exit status with the reason: a supervisor that does not answer, or a key that there is not.
    pub fn run(&self, settings: &Settings, wait: std::time::Duration) -> Result<ConfigPage, (Exit, String)> {
        let failed = |error: &dyn std::fmt::Display| (Exit::Failed, error.to_string());
        let asked = ControlClient::call(&settings.sqlite.control_socket(), &Request::Config, wait);
        let (all, note) = match asked {
            Ok(answer) => (Vec::<Effective>::deserialize(answer).map_err(|error| failed(&error))?, None),
            Err(error @ ControlError::NotRunning(_)) => (
                settings.effective().to_vec(),
                Some(format!("{error}; with these settings one would start here")),
            ),
            Err(error) => return Err(failed(&error)),
        };
        for key in &self.keys {
            if !all.iter().any(|it| covers(key, &it.key)) {
                return Err((Exit::Usage, format!("{key} is neither a key nor a section")));
            }
        }
        let wanted: Vec<&Effective> = all
            .iter()
            .filter(|it| self.keys.is_empty() || self.keys.iter().any(|key| covers(key, &it.key)))
            .filter(|it| !self.changed || !it.is_built_in())
            .collect();
        let text = match self.output.json {
            true => format!("{:#}\n", serde_json::to_value(&wanted).map_err(|error| failed(&error))?),
            false => render(&wanted),
        };
        Ok(ConfigPage { text, note })
    }
}

/// Whether `wanted` is this key, or its section.
fn covers(wanted: &str, key: &str) -> bool {
    key.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn render(settings: &[&Effective]) -> String {
    if settings.is_empty() {
        return "everything is as it was built in\n".into();
    }
    let mut text = String::new();
    for setting in settings {
        let Effective { key, value, origin, allowed } = setting;
        let style = if setting.is_built_in() { Style::new() } else { Style::new().bold() };
        // The value as a whole, however long it is: somebody may want to copy it.
        text += &format!("{style}{key} = {}{style:#}\n", on_one_line(value));
        for line in wrapped(&format!("{}; {allowed}", on_one_line(origin)), COLUMNS_MAX - INDENT.len()) {
            text += INDENT;
            text += &line;
            text.push('\n');
        }
    }
    text
}
