//! What systemd is told, as it is told: datagrams on a socket of our own, from the real process.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod process;

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};

use process::{Device, PATIENCE, Process, READY, command, message};
use tidewater_test_support::FaultProxy;

/// The service manager's end: what it was told, one assignment after the other.
struct Manager {
    messages: Receiver<String>,
    told: Vec<String>,
}

impl Manager {
    /// Listens in a folder, and is named to the command. Always at it: who is not listened to would wait.
    fn listen(folder: &Path, command: &mut Command) -> Self {
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        command.env("NOTIFY_SOCKET", path);
        let (heard, messages) = channel();
        // It ends with the process of this test.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len) = socket.recv(&mut buffer)
                && heard.send(String::from_utf8(buffer[..len].to_vec()).unwrap()).is_ok()
            {}
        });
        Self { messages, told: vec![] }
    }

    /// The assignments of the next message.
    fn next(&mut self) -> Vec<String> {
        let text = self.messages.recv_timeout(PATIENCE);
        let text = text.unwrap_or_else(|error| panic!("{error}: {:#?}", self.told));
        let message: Vec<_> = text.lines().map(str::to_owned).collect();
        self.told.extend(message.iter().cloned());
        message
    }

    /// Waits for a message with this assignment.
    fn wait_for(&mut self, assignment: &str) -> Vec<String> {
        loop {
            let message = self.next();
            if message.iter().any(|it| it == assignment) {
                return message;
            }
        }
    }
}

/// The supervisor without a cloud, and the line of status that goes with it.
fn alone(folder: &Path) -> (Command, FaultProxy, String) {
    let nobody = FaultProxy::reserve("127.0.0.1:1".parse().unwrap());
    let mut command = command(folder);
    command.env("TIDEWATER_DATABASE", "alone.db").env("CLOUD_SQL_PROXY_PORT", nobody.port().to_string());
    let status = format!("STATUS=SQLite only: Proxy not running on 127.0.0.1:{}", nobody.port());
    (command, nobody, status)
}

/// A life as systemd follows it, without a cloud: ready first, one line of status, pings, and the end when it begins.
#[test]
fn systemd_follows_a_life_from_ready_to_stopping() {
    let folder = tempfile::tempdir().unwrap();
    let (mut command, _nobody, status) = alone(folder.path());
    let mut manager = Manager::listen(folder.path(), &mut command);
    let process = Process::spawn(command.env("WATCHDOG_USEC", "400000"));
    assert_eq!(manager.next(), ["READY=1"]);
    assert!(folder.path().join("alone.db.sock").exists(), "whoever is ready answers verbs");
    manager.wait_for(&status);
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1");
    }
    process.signal("TERM");
    let stopping = manager.wait_for("STOPPING=1");
    assert_eq!(stopping, ["STOPPING=1", "STATUS=stopping", "EXTEND_TIMEOUT_USEC=15000000"]);
    let (exit, lines) = process.wait();
    assert_eq!(exit.code(), Some(0));
    assert_eq!(lines.len(), 8, "the log is what it always is: {lines:#?}");
    let statuses: Vec<_> = manager.told.iter().filter(|it| it.starts_with("STATUS=")).collect();
    assert_eq!(statuses, [&status, "STATUS=stopping"], "nothing is said twice");
}

/// A watchdog that waits for another process is not fed by this one; the first message with a status would have done it.
#[test]
fn the_watchdog_of_another_process_is_not_fed() {
    let folder = tempfile::tempdir().unwrap();
    let (mut command, _nobody, status) = alone(folder.path());
    let mut manager = Manager::listen(folder.path(), &mut command);
    command.env("WATCHDOG_USEC", "400000").env("WATCHDOG_PID", std::process::id().to_string());
    let process = Process::spawn(&mut command);
    assert_eq!(manager.wait_for(&status), [status]);
    process.signal("TERM");
    manager.wait_for("STOPPING=1");
    assert_eq!(process.wait().0.code(), Some(0));
    assert!(!manager.told.iter().any(|it| it == "WATCHDOG=1"), "{:#?}", manager.told);
}

/// The line changes with the cloud.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_follows_the_cloud() {
    let device = Device::new().await;
    let mut command = device.command();
    let mut manager = Manager::listen(device.folder.path(), &mut command);
    let process = Process::spawn(&mut command);
    let port = device.proxy.port();
    manager.wait_for(&format!("STATUS=SQLite only: Proxy not running on 127.0.0.1:{port}"));
    device.proxy.start();
    manager.wait_for("STATUS=cloud available, 0 pending");
    process.stop();
    manager.wait_for("STOPPING=1");
}

/// A cloud that is silent in the middle of a flush is no reason to be ended: the pings go on for as long as it lasts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_go_on_while_the_cloud_is_silent() {
    let device = Device::new().await;
    let mut command = device.command();
    let mut manager = Manager::listen(device.folder.path(), &mut command);
    let process = device.start_silenced(command.env("WATCHDOG_USEC", "400000")).await;
    // What was said before the silence does not count.
    manager.messages.try_iter().for_each(drop);
    for _ in 0..5 {
        manager.wait_for("WATCHDOG=1");
    }
    assert_ne!(device.status().unwrap()["sync"]["state"], "idle", "the silence lasted");
    process.kill();
}

/// A service manager that does not listen is named once, and is no reason not to work.
#[test]
fn a_socket_that_nobody_listens_on_is_named_once() {
    let folder = tempfile::tempdir().unwrap();
    let (mut command, _nobody, _) = alone(folder.path());
    command.env("NOTIFY_SOCKET", folder.path().join("gone")).env("WATCHDOG_USEC", "20000");
    let process = Process::ready(&mut command);
    process.wait_for_line("The service manager cannot be told");
    let lines = process.stop();
    assert_eq!(lines.len(), 9, "{lines:#?}");
    assert_eq!((message(&lines[6]), message(&lines[8])), (READY, "✅ Stopped"));
}
