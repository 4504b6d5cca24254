//! `run_supervisor`: parses, loads the settings, and either runs or asks the one that runs.

use std::io::{self, IsTerminal as _, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser as _;
use serde::Deserialize as _;
use serde_json::{Value, json};
use slog::Logger;
use tidewater::ProxyStatus;
use tidewater::cli::{
    Answered, Cli, ConfigArgs, Exit, Output, Sign, StatusArgs, Verb, call, on_one_line, render_adoption,
    render_status,
};
use tidewater::control::{Checked, ControlClient, Request};
use tidewater::doctor::Doctor;
use tidewater::service::ServiceManager;
use tidewater::settings::{Settings, Sources};
use tidewater::{Error, Reloading, signals, telemetry};

/// A verb asks actors; one that is stuck is reported, not waited for.
const WAIT: Duration = Duration::from_secs(10);

/// Between two looks of `status --watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    // Test builds let things go wrong where FAILPOINTS says so.
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();
    let cli = Cli::parse();
    let sources = cli.sources(Settings::builder().process_environment());
    let settings = match sources.build() {
        Ok(settings) => settings,
        Err(error) => return complain(&error, Exit::Usage).into(),
    };
    let exit = match cli.verb {
        None => {
            let (log, guard) = telemetry::start(&settings.log);
            let ended = supervise(settings, sources, log, guard.levels());
            // Why it ends is the last line.
            drop(guard);
            ended.map_or_else(|(exit, why)| complain(&why, exit), |()| Exit::Success)
        }
        Some(verb) => obey(&settings, &verb),
    };
    exit.into()
}

/// Runs until it is asked to end. The error is the exit status with the reason.
fn supervise(
    settings: Settings,
    sources: Sources,
    log: Logger,
    levels: telemetry::Levels,
) -> Result<(), (Exit, String)> {
    let (shutdown, hangups) =
        signals::watch().map_err(|error| (Exit::Failed, format!("signals cannot be watched: {error}")))?;
    let shutdown = async {
        shutdown.await;
    };
    let reloading = Reloading { sources, asked: hangups, levels };
    let manager = ServiceManager::of_this_process();
    let running = tidewater::run(settings, log, manager, Some(reloading), shutdown);
    actix_rt::System::new().block_on(running).map_err(|error| match error {
        Error::Failed(why) => (Exit::BudgetSpent, why),
        error => (Exit::Failed, error.to_string()),
    })
}

/// Does what a verb says.
fn obey(settings: &Settings, verb: &Verb) -> Exit {
    match verb {
        Verb::Rows(verb) => tell(verb.run(settings)),
        Verb::CloudSql(args) => tell(args.run(settings)),
        Verb::Doctor(output) => doctor(settings.clone(), output),
        Verb::Config(args) => config(settings, args),
        Verb::Install(verb) => match verb.print() {
            Ok(text) => print(&text),
            Err(why) => complain(&why, Exit::Usage),
        },
        Verb::Status(StatusArgs { watch: true, output }) => watch(settings, output),
        Verb::Status(StatusArgs { watch: false, output }) => {
            ask(settings, &Request::Status, WAIT, output, |answer| good(render_status(answer, true)))
        }
        Verb::Check(output) => ask(settings, &Request::Check, WAIT + settings.check_timeout(), output, said),
        Verb::Reset(output) => ask(settings, &Request::Reset, WAIT, output, |_| {
            good("failures and waits are forgotten; a check follows at once\n".to_owned())
        }),
        Verb::Circuit { hold, output } => {
            let request = Request::Circuit { forced: hold.forced() };
            ask(settings, &request, WAIT, output, |_| good(format!("{}\n", hold.done())))
        }
        Verb::Adopt(args) => {
            let wait = WAIT + settings.proxy.check_timeout() + settings.cloud.statement_timeout;
            ask(settings, &Request::Adopt { how: args.how() }, wait, &args.output, |answer| {
                let (text, at_home) = render_adoption(answer)?;
                Ok((text, if at_home { Exit::Success } else { Exit::Failed }))
            })
        }
        Verb::Backup(args) => tell(args.run(settings)),
    }
}

/// The answer as people read it, with the status that it stands for.
type Rendered = Result<(String, Exit), serde_json::Error>;

fn good(text: String) -> Rendered {
    Ok((text, Exit::Success))
}

/// Asks the supervisor that runs, and prints its answer.
fn ask(
    settings: &Settings,
    request: &Request,
    wait: Duration,
    output: &Output,
    render: impl FnOnce(&Value) -> Rendered,
) -> Exit {
    let answer = match call(settings, request, wait) {
        Ok(answer) => answer,
        Err((exit, why)) => return complain(&why, exit),
    };
    let (text, exit) = match render(&answer) {
        Ok(rendered) => rendered,
        Err(error) => return complain(&error, Exit::Failed),
    };
    let printed = match output.json {
        true => print(&format!("{answer:#}\n")),
        false => print_coloured(&text),
    };
    match printed {
        Exit::Success => exit,
        failed => failed,
    }
}

/// Shows the status until somebody presses ctrl-C or nobody reads any more; it outlives the supervisor, and finds the next one.
fn watch(settings: &Settings, output: &Output) -> Exit {
    let in_place = io::stdout().is_terminal() && !output.json;
    let coloured = anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never;
    let mut shown = None;
    loop {
        let asked = ControlClient::call(&settings.sqlite.control_socket(), &Request::Status, WAIT);
        let (changes, text) = match asked {
            Ok(status) if output.json => (without_times(&status), format!("{status}\n")),
            Ok(status) => (without_times(&status), render_status(&status, coloured)),
            Err(error) => {
                let error = on_one_line(&error.to_string());
                let said = Value::from(error.clone());
                let text = if output.json {
                    format!("{}\n", json!({ "error": said }))
                } else {
                    format!("{error}\n")
                };
                (said, text)
            }
        };
        if in_place || shown.as_ref() != Some(&changes) {
            let text = if in_place { redrawn(&text) } else { text };
            let mut out = io::stdout().lock();
            if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
                return Exit::Success;
            }
        }
        shown = Some(changes);
        std::thread::sleep(WATCH_INTERVAL);
    }
}

/// From the top of the screen, over what was there; what is longer than the page goes.
fn redrawn(page: &str) -> String {
    let mut text = "\x1b[H".to_owned();
    for line in page.lines() {
        text += line;
        text += "\x1b[K\n";
    }
    text + "\x1b[J"
}

/// What changes with every check is no news.
fn without_times(status: &Value) -> Value {
    let mut status = status.clone();
    if let Some(proxy) = status["proxy"].as_object_mut() {
        proxy.retain(|key, _| !["last_check", "last_success"].contains(&key.as_str()));
    }
    status
}

/// Prints the settings.
fn config(settings: &Settings, args: &ConfigArgs) -> Exit {
    match args.run(settings, WAIT) {
        Ok(page) => {
            if let Some(note) = &page.note {
                // A line for people; the exit status is that of the settings, which are there.
                let _ = writeln!(io::stderr(), "run_supervisor: {note}");
            }
            print_coloured(&page.text)
        }
        Err((exit, why)) => complain(&why, exit),
    }
}

/// Looks at everything, with a sign of life on a terminal.
fn doctor(settings: Settings, output: &Output) -> Exit {
    let sign = Arc::new(Sign::new(settings.log.progress_after));
    let shown = sign.clone();
    let report = Doctor::new(settings).telling(move |step| shown.show(step)).examine();
    sign.finish();
    let printed = if output.json {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => print(&format!("{text}\n")),
            Err(error) => complain(&error, Exit::Failed),
        }
    } else {
        print_coloured(&report.page(true))
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
fn said(answer: &Value) -> Rendered {
    let Checked { detection, proxy_required } = Checked::deserialize(answer)?;
    let available = detection.status == ProxyStatus::Available;
    let exit = if available || !proxy_required { Exit::Success } else { Exit::Failed };
    Ok((format!("{}: {}\n", detection.status, on_one_line(&detection.detail)), exit))
}

/// `println!` would panic when the reader has gone (`run_supervisor status | head -1`).
fn print(text: &str) -> Exit {
    print_to(&mut io::stdout().lock(), text)
}

/// Colours are taken out again where nobody wants them: no terminal, NO_COLOR.
fn print_coloured(text: &str) -> Exit {
    print_to(&mut anstream::stdout().lock(), text)
}

fn print_to(out: &mut dyn Write, text: &str) -> Exit {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => complain(&error, Exit::Failed),
        _ => Exit::Success,
    }
}

/// One line on standard error; if that has gone, the exit status has to do.
fn complain(error: &dyn std::fmt::Display, exit: Exit) -> Exit {
    let _ = writeln!(io::stderr(), "run_supervisor: {}", on_one_line(&error.to_string()));
    exit
}
