//! `adopt`: which cloud answers, to which the file belongs, and the word that makes the one the other.

use clap::Args;
use serde::Deserialize as _;
use serde_json::Value;
use tidewater_actors::messages::{Adopt, Adoption, Residence};

use super::{COLUMNS_MAX, Output, on_one_line, wrapped};

/// The longest name, "belongs to", and a space.
const INDENT: usize = 11;

/// What `adopt` takes.
#[derive(Debug, Clone, Args)]
#[command(
    long_about = "Shows which cloud answers now and to which one this database belongs. With --yes, or with the identity \
                  of the one that answers, the database belongs to that one from then on: every table is compared with \
                  it, what is pending stays pending, rows that only one side has go to the other, and nothing is deleted.",
    after_help = "Examples:\n  run_supervisor adopt\n  run_supervisor adopt 6f1c2e5a-0d35-4b0e-9a55-1d9d2f1c7b11\n  \
                  run_supervisor adopt --yes\n\n--json prints {belongs, answers, adopted, pending}.\n\
                  Exit status: 0 it belongs to the cloud that answers, 1 it does not (yet), 2 usage, 3 not running."
)]
pub struct AdoptArgs {
    /// Adopt the cloud that answers if it has this identity
    #[arg(value_name = "IDENTITY", conflicts_with = "yes")]
    pub identity: Option<String>,
    /// Adopt the cloud that answers, whichever it is
    #[arg(long)]
    pub yes: bool,
    /// How to print
    #[command(flatten)]
    pub output: Output,
}

impl AdoptArgs {
    /// How sure who typed this is.
    #[must_use]
    pub fn how(&self) -> Adopt {
        match (&self.identity, self.yes) {
            (Some(identity), _) => Adopt::Identity(identity.clone()),
            (None, true) => Adopt::Whoever,
            (None, false) => Adopt::Look,
        }
    }
}

/// The answer as people read it, and whether the database belongs to the cloud that answers.
///
/// # Errors
/// When the answer is not one.
pub fn render(answer: &Value) -> Result<(String, bool), serde_json::Error> {
    let Adoption { belongs, answers, adopted, pending } = Adoption::deserialize(answer)?;
    let before = belongs.as_ref().map_or_else(|| "no cloud yet".to_owned(), place);
    let there = place(&answers);
    // What is wider than a terminal goes on below itself.
    let field = |name: &str, text: &str| {
        let text = wrapped(text, COLUMNS_MAX - INDENT).join(&format!("\n{:INDENT$}", ""));
        format!("{name:<INDENT$}{text}\n")
    };
    let same = belongs.as_ref().is_some_and(|belongs| {
        (&belongs.identity, &belongs.system) == (&answers.identity, &answers.system)
            && belongs.database.as_ref().is_none_or(|known| Some(known) == answers.database.as_ref())
    });
    let mut text = field("answers", &there);
    if adopted {
        text += &field("before", &before);
        text +=
            &format!("adopted: every table is compared with it, {pending} row(s) are pending as before\n");
    } else {
        text += &field("belongs to", &before);
        text += match same {
            true => "nothing to do: this database belongs to the cloud that answers\n",
            false => "nothing was changed; if this is the right cloud: run_supervisor adopt --yes\n",
        };
    }
    Ok((text, adopted || same))
}

fn place(residence: &Residence) -> String {
    let word = |part: &Option<String>| part.as_deref().map_or_else(|| "?".to_owned(), on_one_line);
    let identity = residence.identity.as_deref().map_or_else(|| "without a mark".to_owned(), on_one_line);
    let name = residence.name.as_deref().map_or_else(String::new, |name| format!(" {}", on_one_line(name)));
    format!("{identity}  server {}  database{name} ({})", word(&residence.system), word(&residence.database))
}
