//! `run_supervisor`: parses, loads the settings, and either runs or asks the one that runs.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use slog::Logger;
use tidewater::cli::{Cli, Exit, StatusArgs, Verb, render_status};
use tidewater::control::{ControlClient, ControlError, Request};
use tidewater::settings::Settings;
use tidewater::{Error, signals, telemetry};

/// `status` asks every actor; one that is stuck is reported, not waited for.
const STATUS_WAIT: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let settings = match cli.settings(Settings::builder().process_environment()) {
        Ok(settings) => settings,
        Err(error) => return complain(&error, Exit::Usage).into(),
    };
    let exit = match cli.verb {
        None => {
            let (log, _guard) = telemetry::start(&settings.log);
            supervise(settings, log)
        }
        Some(Verb::Status(args)) => status(&settings.sqlite.control_socket(), &args),
    };
    exit.into()
}

/// Runs until it is asked to end.
fn supervise(settings: Settings, log: Logger) -> Exit {
    let shutdown = match signals::shutdown_requested() {
        Ok(shutdown) => shutdown,
        Err(error) => return complain(&format!("signals cannot be watched: {error}"), Exit::Failed),
    };
    let shutdown = async {
        shutdown.await;
    };
    match actix_rt::System::new().block_on(tidewater::run(settings, log, shutdown)) {
        Ok(()) => Exit::Success,
        Err(error @ Error::Failed(_)) => complain(&error, Exit::BudgetSpent),
        Err(error) => complain(&error, Exit::Failed),
    }
}

fn status(socket: &Path, args: &StatusArgs) -> Exit {
    ask(socket, &Request::Status, STATUS_WAIT, |status| match args.json {
        true => format!("{status:#}\n"),
        false => render_status(status),
    })
}

/// Asks the supervisor that runs and prints what `render` makes of the answer.
fn ask(
    socket: &Path,
    request: &Request,
    wait: Duration,
    render: impl FnOnce(&serde_json::Value) -> String,
) -> Exit {
    match ControlClient::call(socket, request, wait) {
        Ok(answer) => print(&render(&answer)),
        Err(error @ ControlError::NotRunning(_)) => complain(&error, Exit::NotRunning),
        Err(error) => complain(&error, Exit::Failed),
    }
}

/// `println!` would panic when the reader has gone (`run_supervisor status | head -1`).
fn print(text: &str) -> Exit {
    let mut out = io::stdout().lock();
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
