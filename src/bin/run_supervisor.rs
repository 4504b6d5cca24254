//! `run_supervisor`: parses, loads the settings, and either runs or asks the one that runs.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use indicatif::ProgressBar;
use serde::Deserialize as _;
use serde_json::Value;
use slog::Logger;
use tidewater::ProxyStatus;
use tidewater::cli::{Answered, Cli, Exit, Output, Verb, render_adoption, render_status};
use tidewater::control::{Checked, ControlClient, ControlError, Request};
use tidewater::doctor::{Doctor, Step, size};
use tidewater::service::ServiceManager;
use tidewater::settings::Settings;
use tidewater::{Copied, Error, signals, telemetry};

/// A verb asks actors; one that is stuck is reported, not waited for.
const WAIT: Duration = Duration::from_secs(10);

/// A copy takes as long as its disk does; who does not want to wait ends the verb, and the copy with it.
const BACKUP_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

fn main() -> ExitCode {
    // Test builds let things go wrong where FAILPOINTS says so.
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();
    let cli = Cli::parse();
    let settings = match cli.settings(Settings::builder().process_environment()) {
        Ok(settings) => settings,
        Err(error) => return complain(&error, Exit::Usage).into(),
    };
    let exit = match cli.verb {
        None => {
            let (log, guard) = telemetry::start(&settings.log);
            let ended = supervise(settings, log);
            // Why it ends is the last line.
            drop(guard);
            ended.map_or_else(|(exit, why)| complain(&why, exit), |()| Exit::Success)
        }
        Some(verb) => ask(&settings, &verb),
    };
    exit.into()
}

/// Runs until it is asked to end. The error is the exit status with the reason.
fn supervise(settings: Settings, log: Logger) -> Result<(), (Exit, String)> {
    let shutdown = signals::shutdown_requested()
        .map_err(|error| (Exit::Failed, format!("signals cannot be watched: {error}")))?;
    let shutdown = async {
        shutdown.await;
    };
    let running = tidewater::run(settings, log, ServiceManager::of_this_process(), shutdown);
    actix_rt::System::new().block_on(running).map_err(|error| match error {
        Error::Failed(why) => (Exit::BudgetSpent, why),
        error => (Exit::Failed, error.to_string()),
    })
}

/// Asks the supervisor that runs, and prints its answer.
fn ask(settings: &Settings, verb: &Verb) -> Exit {
    let (request, wait, Output { json }) = match verb {
        Verb::Rows(verb) => return tell(verb.run(settings)),
        Verb::CloudSql(args) => return tell(args.run(settings)),
        Verb::Status(output) => (Request::Status, WAIT, output),
        Verb::Check(output) => (Request::Check, WAIT + settings.check_timeout(), output),
        Verb::Reset(output) => (Request::Reset, WAIT, output),
        // It asks by itself, and works where nobody answers.
        Verb::Doctor(output) => return doctor(settings.clone(), output),
        Verb::Circuit { hold, output } => (Request::Circuit { forced: hold.forced() }, WAIT, output),
        Verb::Adopt(args) => (
            Request::Adopt { how: args.how() },
            WAIT + settings.proxy.check_timeout() + settings.cloud.statement_timeout,
            &args.output,
        ),
        Verb::Backup { path, overwrite, output } => match std::path::absolute(path) {
            Ok(path) => (Request::Backup { path, overwrite: *overwrite }, BACKUP_WAIT, output),
            Err(error) => return complain(&format!("{}: {error}", path.display()), Exit::Failed),
        },
    };
    let answer = match ControlClient::call(&settings.sqlite.control_socket(), &request, wait) {
        Ok(answer) => answer,
        Err(error @ ControlError::NotRunning(_)) => return complain(&error, Exit::NotRunning),
        Err(error) => return complain(&error, Exit::Failed),
    };
    let (text, exit) = match verb {
        Verb::Status(_) => (render_status(&answer), Exit::Success),
        Verb::Check(_) => match said(&answer) {
            Ok(said) => said,
            Err(error) => return complain(&error, Exit::Failed),
        },
        // They have returned above.
        Verb::Rows(_) | Verb::CloudSql(_) | Verb::Doctor(_) => (String::new(), Exit::Success),
        Verb::Reset(_) => {
            ("failures and waits are forgotten; a check follows at once\n".to_owned(), Exit::Success)
        }
        Verb::Circuit { hold, .. } => (format!("{}\n", hold.done()), Exit::Success),
        Verb::Adopt(_) => match render_adoption(&answer) {
            Ok((text, at_home)) => (text, if at_home { Exit::Success } else { Exit::Failed }),
            Err(error) => return complain(&error, Exit::Failed),
        },
        Verb::Backup { .. } => match Copied::deserialize(&answer) {
            Ok(Copied { path, bytes }) => {
                (format!("{bytes} bytes are in {}\n", path.display()), Exit::Success)
            }
            Err(error) => return complain(&error, Exit::Failed),
        },
    };
    match print(&if *json { format!("{answer:#}\n") } else { text }) {
        Exit::Success => exit,
        failed => failed,
    }
}

/// Looks at everything, with a sign of life on a terminal.
fn doctor(settings: Settings, output: &Output) -> Exit {
    let bar = ProgressBar::new_spinner();
    // Drawn on standard error, and only on a terminal.
    bar.enable_steady_tick(Duration::from_millis(100));
    let sign = bar.clone();
    let report = Doctor::new(settings)
        .telling(move |step| {
            sign.set_message(match step {
                Step::Asking => "asking the supervisor, or PostgreSQL".to_owned(),
                Step::Reading(bytes) => format!("looking through {} of the file", size(bytes)),
            });
        })
        .examine();
    bar.finish_and_clear();
    let printed = if output.json {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => print(&format!("{text}\n")),
            Err(error) => complain(&error, Exit::Failed),
        }
    } else {
        // Colours are taken out again where nobody wants them: no terminal, NO_COLOR.
        print_to(&mut anstream::stdout().lock(), &report.page(true))
    };
    match printed {
        Exit::Success if !report.is_good() => Exit::Failed,
        printed => printed,
    }
}

/// Prints what came of a verb that sees to itself.
fn tell(outcome: Result<Answered, (Exit, String)>) -> Exit {
    match outcome {
        Ok(answered) => match print(&answered.text) {
            Exit::Success => answered.exit,
            failed => failed,
        },
        Err((exit, why)) => complain(&why, exit),
    }
}

/// A line with what a check found. Where the proxy is required, its absence is a failure.
fn said(answer: &Value) -> Result<(String, Exit), serde_json::Error> {
    let Checked { detection, proxy_required } = Checked::deserialize(answer)?;
    let available = detection.status == ProxyStatus::Available;
    let exit = if available || !proxy_required { Exit::Success } else { Exit::Failed };
    Ok((format!("{}: {}\n", detection.status, detection.detail), exit))
}

/// `println!` would panic when the reader has gone (`run_supervisor status | head -1`).
fn print(text: &str) -> Exit {
    print_to(&mut io::stdout().lock(), text)
}

fn print_to(out: &mut dyn Write, text: &str) -> Exit {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => complain(&error, Exit::Failed),
        _ => Exit::Success,
    }
}

/// One line on standard error; if that has gone, the exit status has to do.
fn complain(error: &dyn std::fmt::Display, exit: Exit) -> Exit {
    let _ = writeln!(io::stderr(), "run_supervisor: {error}");
    exit
}
