//! An end as people see it, at its worst: the cloud is silent and a row waits.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, missing_docs)]

mod process;

use std::process::Command;
use std::time::Instant;

use process::{Device, message};
use tidewater_test_support::Mode;

fn ending_within(device: &Device, shutdown_s: &str) -> Command {
    let mut command = device.command();
    command.env("TIDEWATER_SUPERVISOR__SHUTDOWN_S", shutdown_s);
    command
}

/// The row that waited is in the cloud after the next start.
async fn assert_nothing_is_lost(device: &Device) {
    device.proxy.set_mode(Mode::Forward);
    let process = device.start();
    device.wait_until_equal(&["note"]).await;
    process.stop();
}

/// An orderly end does not wait for a silent cloud longer than it is told to: the patience of this test ends long before
/// any timeout of the network does. Every actor stops in time, the file is free, and the row waits for the next start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_end_does_not_wait_for_a_silent_cloud() {
    let device = Device::new().await;
    let process = device.start_silenced(&mut ending_within(&device, "1")).await;
    let asked = Instant::now();
    process.signal("TERM");
    let (status, lines) = process.wait();
    eprintln!("ended {:?} after SIGTERM, with shutdown_s = 1", asked.elapsed());
    assert_eq!(status.code(), Some(0), "{lines:#?}");
    assert_eq!(message(lines.last().unwrap()), "✅ Stopped");
    assert!(!lines.iter().any(|line| line.contains("did not end in time")), "{lines:#?}");
    assert_nothing_is_lost(&device).await;
}

/// The second signal ends at once what the first one would end in an hour, with the documented status; what was
/// acknowledged is there afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_signal_ends_a_slow_end_at_once() {
    for (first, second, status) in [("TERM", "TERM", 143), ("TERM", "INT", 130)] {
        let device = Device::new().await;
        let mut process = device.start_silenced(&mut ending_within(&device, "3600")).await;
        process.signal(first);
        device.wait_until_ending();
        assert!(process.is_running(), "the end takes its time: {:#?}", process.lines());
        process.signal(second);
        let (exit, lines) = process.wait();
        assert_eq!(exit.code(), Some(status), "SIG{first}, then SIG{second}: {lines:#?}");
        assert!(!lines.iter().any(|line| line.contains("Stopped")), "{lines:#?}");
        assert_nothing_is_lost(&device).await;
    }
}
