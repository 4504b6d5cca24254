//! SIGINT and SIGTERM: the first asks for an orderly end, the second ends at once.
//!
//! Both are watched by a thread with a runtime of its own, so that the second one works when the thread that
//! should end in order is the one that is stuck.

use std::fmt;
use std::future::Future;
use std::io;

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};
use tokio::sync::oneshot;

/// What asked for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// What service managers and `kill` send.
    Terminate,
}

impl Signal {
    /// What a shell reports for a process that this signal ended: 128 and its number.
    #[must_use]
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        })
    }
}

/// Takes over both signals at once, before it returns; the future resolves at the first one. From then on a
/// further one ends the process with [`Signal::exit_status`], whether or not the future was polled or dropped.
/// Call it once per process, in the binary only: an embedding application has its own idea of signals.
///
/// # Errors
/// When the operating system refuses a handler, a runtime or a thread.
pub fn shutdown_requested() -> io::Result<impl Future<Output = Signal> + Send + 'static> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let (tell, told) = oneshot::channel();
    std::thread::Builder::new().name("tidewater-signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            let first = next(&mut interrupt, &mut terminate).await;
            let _ = tell.send(first);
            let second = next(&mut interrupt, &mut terminate).await;
            std::process::exit(i32::from(second.exit_status()));
        });
    })?;
    Ok(async move {
        match told.await {
            Ok(signal) => signal,
            // The thread sends before it ends, or does not end; if it could, nothing was asked for.
            Err(_) => std::future::pending().await,
        }
    })
}

async fn next(interrupt: &mut Stream, terminate: &mut Stream) -> Signal {
    tokio::select! {
        _ = interrupt.recv() => Signal::Interrupt,
        _ = terminate.recv() => Signal::Terminate,
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
        let asked = shutdown_requested().unwrap();
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
