//! Failures are not all alike: what a failed cloud call means, decided from the facts alone.
//!
//! A class says what is to be done, not what went wrong. The shells
//! translate their errors into [`CloudFailure`] once, at the edge, and everything behind decides by class.

use serde::{Deserialize, Serialize};

/// What a failed cloud call asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// Refused, nothing listening, socket file missing: the proxy is not running.
    NotRunning,
    /// Connect or start-up timed out, or the accepted connection was closed without an answer: the proxy is
    /// up, the instance behind it is not reachable.
    NotAnswering,
    /// The server is starting, stopping, or full (57P03, 57P01, 57P02, 53300).
    Busy,
    /// Wrong credentials, no such database, or a right that everything needs is missing (28P01, 28000,
    /// 3D000, 42501), or nothing to log in with. A retry cannot help, and hammering locks accounts.
    Credentials,
    /// Not the database that this file belongs to, or not a PostgreSQL at all.
    NotOurs,
    /// PostgreSQL refuses the data of this round: not a connection failure.
    DataRefused,
    /// Serialization failure, deadlock, broken connection: the same round again may well succeed.
    Transient,
    /// The check itself failed (name resolution, no file descriptors) and says nothing about the proxy.
    CheckFailed,
}

impl FailureClass {
    /// Whether trying the same again, later, can succeed without somebody changing something.
    pub fn retry_helps(self) -> bool {
        !matches!(self, Self::Credentials | Self::NotOurs | Self::DataRefused)
    }

    /// What it means, as half a sentence.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::NotRunning => "the proxy is not running",
            Self::NotAnswering => "the instance behind the proxy does not answer",
            Self::Busy => "the server takes no connections right now",
            Self::Credentials => "the login is refused, or nothing to log in with is set",
            Self::NotOurs => "what answers is another database, or none",
            Self::DataRefused => "PostgreSQL refuses a row",
            Self::Transient => "the connection broke",
            Self::CheckFailed => "the check itself failed",
        }
    }

    /// Whether the failure speaks about the link and not about the data, so that the watcher looks at it.
    pub fn concerns_link(self) -> bool {
        self != Self::DataRefused
    }

    /// Whether the breaker counts it. A deadlock, or a connection that broke, does not: the same call may well succeed at
    /// once, and if the link is gone, the watcher says so.
    pub fn opens_circuit(self) -> bool {
        !matches!(self, Self::DataRefused | Self::Transient)
    }
}

/// Where in the life of a connection an error was reported; the same SQLSTATE means different things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Connecting, logging in, and asking who is there.
    Startup,
    /// The statements that create and check what the sync itself needs.
    Setup,
    /// The data of a round.
    Round,
    /// Reading the change feed and rows.
    Pull,
}

/// A failed cloud call: its class, and what a person reads about it. Never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct CloudFailure {
    /// What is to be done about it.
    pub class: FailureClass,
    /// PostgreSQL's code, where PostgreSQL answered at all.
    pub sqlstate: Option<String>,
    /// One line for a person: what happened.
    pub detail: String,
    /// One line for a person: what to do, where something can be done.
    pub remedy: Option<String>,
    /// Whether somebody had taken the connection; false only where it is known that nobody had.
    pub accepted: bool,
}

impl CloudFailure {
    /// Whether the link, or the server as a whole, is in trouble. A statement that took too long, waited too long for a lock
    /// or lost a deadlock was answered: the next one is as likely to succeed as ever.
    pub fn concerns_link(&self) -> bool {
        let answered = ["40001", "40P01", "55P03", QUERY_CANCELED];
        self.class.concerns_link() && !self.sqlstate.as_deref().is_some_and(|code| answered.contains(&code))
    }

    /// Whether PostgreSQL could not make sense of a value (class 22): the text of a number that is none, for instance.
    pub fn is_about_a_value(&self) -> bool {
        self.sqlstate.as_deref().is_some_and(|code| code.starts_with("22"))
    }

    /// A failure without a SQLSTATE.
    pub fn new(class: FailureClass, detail: impl Into<String>) -> Self {
        Self { class, sqlstate: None, detail: one_line(&detail.into()), remedy: None, accepted: true }
    }

    /// The same with a remedy.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// The longest that is shown of what a server said, in characters.
const SHOWN_MAX: usize = 2000;

/// What somebody else wrote, fit for a log and a terminal: one line, no longer than a page, without anything that a terminal
/// obeys.
pub fn one_line(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(SHOWN_MAX));
    for (at, c) in text.chars().enumerate() {
        match c {
            _ if at == SHOWN_MAX => {
                shown.push('…');
                break;
            }
            c if c.is_control() => shown.extend(c.escape_debug()),
            // Marks that turn the direction of what follows them.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown
}

/// A statement took longer than it may, or somebody ended it by hand.
pub const QUERY_CANCELED: &str = "57014";

/// Refusals for which another row may be the reason: restrict, foreign key, unique, exclusion; and the end of a statement that took
/// too long, for somebody may have locked what it needs.
pub const NEED_OTHERS: [&str; 5] = ["23001", "23503", "23505", "23P01", QUERY_CANCELED];

/// Whether a refusal may be another row's doing ([`NEED_OTHERS`]).
pub fn needs_others(sqlstate: &str) -> bool {
    NEED_OTHERS.contains(&sqlstate)
}

/// The class of an error that PostgreSQL itself reported.
///
/// Codes: PostgreSQL 15 manual, appendix A. Inside a round everything that is neither connection nor
/// transient is suspect data, a missing right included: row-level security answers 42501.
pub fn classify_sqlstate(sqlstate: &str, phase: Phase) -> FailureClass {
    match sqlstate {
        "57P01" | "57P02" | "57P03" | "53300" => FailureClass::Busy,
        "28P01" | "28000" | "3D000" => FailureClass::Credentials,
        "40001" | "40P01" | "57P05" | "55P03" | QUERY_CANCELED | "25P03" | "25P02" => FailureClass::Transient,
        code if code.starts_with("08") || code.starts_with("53") || code.starts_with("58") => {
            FailureClass::Transient
        }
        // A read-only replica answered: nothing can be flushed there until somebody points us elsewhere.
        "25006" => FailureClass::Credentials,
        "42501" if phase != Phase::Round => FailureClass::Credentials,
        _ if phase == Phase::Round => FailureClass::DataRefused,
        _ => FailureClass::Transient,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row of the table lands where the table says.
    #[test]
    fn every_documented_code_has_its_class() {
        for (code, phase, class) in [
            ("57P03", Phase::Startup, FailureClass::Busy),
            ("57P01", Phase::Round, FailureClass::Busy),
            ("53300", Phase::Startup, FailureClass::Busy),
            ("28P01", Phase::Startup, FailureClass::Credentials),
            ("28000", Phase::Startup, FailureClass::Credentials),
            ("3D000", Phase::Startup, FailureClass::Credentials),
            ("42501", Phase::Setup, FailureClass::Credentials),
            ("42501", Phase::Round, FailureClass::DataRefused),
            ("40001", Phase::Round, FailureClass::Transient),
            ("40P01", Phase::Round, FailureClass::Transient),
            ("08006", Phase::Round, FailureClass::Transient),
            ("57P05", Phase::Pull, FailureClass::Transient),
            ("23505", Phase::Round, FailureClass::DataRefused),
            ("P0001", Phase::Round, FailureClass::DataRefused),
            ("54000", Phase::Round, FailureClass::DataRefused),
            ("25006", Phase::Round, FailureClass::Credentials),
        ] {
            assert_eq!(classify_sqlstate(code, phase), class, "{code} in {phase:?}");
        }
    }
}
