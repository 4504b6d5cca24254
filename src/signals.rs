//! SIGINT and SIGTERM: the first asks for an orderly end, the second ends at once. SIGHUP: the settings are read again; from
//! a terminal that has gone it is what it always was, a reason to end.
//!
//! All are watched by a thread with a runtime of its own, so that the second one works when the thread that
//! should end in order is the one that is stuck.

use std::fmt;
use std::future::Future;
use std::io::{self, IsTerminal as _};
use std::sync::Arc;

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};
use tokio::sync::{Notify, oneshot};

/// What asked for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// What service managers and `kill` send.
    Terminate,
    /// The terminal has gone.
    Hangup,
}

impl Signal {
    /// What a shell reports for a process that this signal ended: 128 and its number.
    #[must_use]
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
            Self::Hangup => 129,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::Hangup => "SIGHUP",
        })
    }
}

/// Each SIGHUP that does not end the process; those that come while one is being obeyed are one.
#[derive(Debug, Clone, Default)]
pub struct Hangups(Arc<Notify>);

impl Hangups {
    /// Waits for the next one.
    pub async fn next(&self) {
        self.0.notified().await;
    }
}

/// Takes over the signals at once, before it returns; the future resolves at the first SIGINT or SIGTERM, and at the SIGHUP of
/// a terminal that has gone. From then on a further SIGINT or SIGTERM ends the process with
/// [`Signal::exit_status`], whether or not the future was polled or dropped.
/// Call it once per process, in the binary only: an embedding application has its own idea of signals.
///
/// # Errors
/// When the operating system refuses a handler, a runtime or a thread.
pub fn watch() -> io::Result<(impl Future<Output = Signal> + Send + 'static, Hangups)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut streams = {
        let _inside = runtime.enter();
        Streams {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            on_terminal: io::stderr().is_terminal(),
        }
    };
    let hangups = Hangups::default();
    let heard = hangups.clone();
    let (tell, told) = oneshot::channel();
    std::thread::Builder::new().name("tidewater-signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            let first = streams.first(&heard).await;
            let _ = tell.send(first);
            let second = streams.second().await;
            std::process::exit(i32::from(second.exit_status()));
        });
    })?;
    let asked = async move {
        match told.await {
            Ok(signal) => signal,
            // The thread sends before it ends, or does not end; if it could, nothing was asked for.
            Err(_) => std::future::pending().await,
        }
    };
    Ok((asked, hangups))
}

struct Streams {
    interrupt: Stream,
    terminate: Stream,
    hangup: Stream,
    /// Whether there was a terminal at the start.
    on_terminal: bool,
}

impl Streams {
    /// The first one that asks for the end.
    async fn first(&mut self, hangups: &Hangups) -> Signal {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return Signal::Interrupt,
                _ = self.terminate.recv() => return Signal::Terminate,
                _ = self.hangup.recv() => {
                    // One that has gone is none any more; who started the process there does not see it run on.
                    if self.on_terminal && !io::stderr().is_terminal() {
                        return Signal::Hangup;
                    }
                    hangups.0.notify_one();
                }
            }
        }
    }

    /// One that insists. A shell whose terminal has gone tells its children once more; that is not meant so.
    async fn second(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Child, ChildStdout, Command, Stdio};

    use super::*;

    /// Not a test: the process that the tests below send signals to. It ends its first signal's work never.
    #[test]
    #[ignore = "run by the tests below, in a process of its own"]
    fn a_process_that_is_stuck() {
        let (asked, _) = watch().unwrap();
        println!("\nready");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        println!("asked by {}", runtime.block_on(asked));
        // Stuck: this thread looks at nothing any more. Bounded, in case nobody ends the process.
        std::thread::sleep(std::time::Duration::from_secs(60));
    }

    fn start() -> (Child, BufReader<ChildStdout>) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "signals::tests::a_process_that_is_stuck", "--ignored", "--nocapture"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        (child, out)
    }

    fn send(child: &Child, signal: &str) {
        let kill = format!("kill -{signal} {}", child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    fn wait_for(out: &mut BufReader<ChildStdout>, text: &str) {
        let found = out.lines().any(|line| line.unwrap().contains(text));
        assert!(found, "the process ended without saying {text:?}");
    }

    /// The first signal is handed over; the second one ends the process although its main thread is stuck.
    #[test]
    fn the_second_signal_ends_a_stuck_process() {
        for (first, name, second, status) in
            [("TERM", "SIGTERM", "TERM", 143), ("INT", "SIGINT", "INT", 130), ("TERM", "SIGTERM", "INT", 130)]
        {
            let (mut child, mut out) = start();
            wait_for(&mut out, "ready");
            send(&child, first);
            wait_for(&mut out, &format!("asked by {name}"));
            send(&child, second);
            assert_eq!(child.wait().unwrap().code(), Some(status));
        }
    }
}
