//! A sign of life while `doctor` looks: a bar on a terminal; anywhere else lines on standard error, at the pace of the log.

use std::io::{self, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tidewater_actors::core::progress::{Extent, FileCourse, FileWork};

use crate::doctor::{Step, size};

/// While it goes on.
#[derive(Debug)]
pub struct Sign {
    bar: ProgressBar,
    after: Duration,
    shown: Mutex<Shown>,
}

#[derive(Debug, Default)]
struct Shown {
    /// Whether the bar has a length now.
    measured: bool,
    reading: Option<(Instant, FileCourse)>,
}

impl Sign {
    /// Drawn on standard error, and only where that is a terminal. Elsewhere the first line comes after so long.
    #[must_use]
    pub fn new(after: Duration) -> Self {
        let bar = ProgressBar::new_spinner().with_style(spinner()).with_message("looking at the file");
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar, after, shown: Mutex::default() }
    }

    /// This is being done now.
    pub fn show(&self, step: Step) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        match step {
            Step::Asking => self.bar.set_message("asking the supervisor, or PostgreSQL"),
            Step::Reading(bytes) => {
                self.bar.set_message(format!("looking through {} of the file", size(bytes)));
                let course = FileCourse::new(FileWork::Check, Duration::ZERO, self.after);
                shown.reading = Some((Instant::now(), course));
            }
            Step::Looking(extent) => {
                if self.bar.is_hidden() {
                    shown.say(|course, now| course.see(extent, now));
                } else {
                    self.draw(&mut shown, extent);
                }
            }
            Step::Looked => {
                if self.bar.is_hidden() {
                    shown.say(|course, now| course.end(None, now));
                }
            }
        }
    }

    fn draw(&self, shown: &mut Shown, extent: Extent) {
        let measured = matches!(extent, Extent::AtMost { .. } | Extent::Bytes { .. });
        if measured != shown.measured {
            self.bar.set_style(if measured { bar() } else { spinner() });
            // What was asked before is no part of the rate.
            self.bar.reset_eta();
            shown.measured = measured;
        }
        match extent {
            Extent::AtMost { done, of } | Extent::Bytes { done, of } => {
                self.bar.set_length(of.max(done));
                self.bar.set_position(done);
            }
            Extent::References { done, of } => {
                self.bar.set_message(format!(
                    "looking for rows without their parents, table {} of {of}",
                    done + 1
                ));
            }
            Extent::Unknown => {}
        }
    }

    /// It is over.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Shown {
    /// A line that cannot be written is not written.
    fn say(&mut self, line: impl FnOnce(&mut FileCourse, Duration) -> Option<String>) {
        if let Some((began, course)) = &mut self.reading
            && let Some(line) = line(course, began.elapsed())
        {
            let _ = writeln!(io::stderr(), "run_supervisor: {line}");
        }
    }
}

/// For what has no measure.
fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {msg}, for {elapsed} so far")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn bar() -> ProgressStyle {
    let template = "checking {wide_bar} {binary_bytes} of at most {binary_total_bytes}, {binary_bytes_per_sec}, at most {eta} left";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
