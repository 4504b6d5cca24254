//! What people are told of long work while it goes on: `status` always, the log at a calm pace.

use super::*;
use crate::core::progress::{Course, Progress, Work};

/// The work that is under way; shared by the syncer, which is asked, and its cycle, which works.
#[derive(Debug, Clone)]
pub(super) struct Told {
    origin: Instant,
    course: Arc<Mutex<Option<Course>>>,
    /// The wait before the first line.
    after: Duration,
}

impl Told {
    pub(super) fn new(after: Duration) -> Self {
        Self { origin: Instant::now(), course: Arc::default(), after }
    }

    fn course(&self) -> std::sync::MutexGuard<'_, Option<Course>> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far it is, unless nothing is under way.
    pub(super) fn progress(&self) -> Option<Progress> {
        Some(self.course().as_ref()?.progress(self.origin.elapsed()))
    }

    /// Other work begins; what was before is over.
    fn begin(&self, work: Work, log: &Logger) {
        self.end(log);
        *self.course() = Some(Course::new(work, self.origin.elapsed(), self.after));
    }

    /// It is over, which is news where there was a line about it.
    pub(super) fn end(&self, log: &Logger) {
        let Some(course) = self.course().take() else { return };
        if course.was_told() {
            let Progress { work, rows, rows_per_s, .. } = course.progress(self.origin.elapsed());
            info!(log, "{work}: done, {rows} rows, {rows_per_s:.0}/s");
        }
    }

    /// So many rows more are done. Answers whether a line is due.
    fn advance(&self, rows: usize) -> bool {
        let rows = u64::try_from(rows).unwrap_or(u64::MAX);
        self.course().as_mut().is_some_and(|course| course.advance(rows, self.origin.elapsed()))
    }

    fn expect(&self, rows_left: u64) {
        if let Some(course) = self.course().as_mut() {
            course.expect(rows_left);
        }
    }

    fn say(&self, log: &Logger) {
        if let Some(progress) = self.progress() {
            info!(log, "{progress}");
        }
    }
}

impl Cycle {
    /// A table begins to be compared with the cloud.
    pub(super) fn tell_first_sync(&self, ready: &ReadyTable) {
        self.told.begin(Work::FirstSync { table: ready.table.name.clone() }, &self.log);
    }

    /// A page of it is done. How many there are about is asked for when more than one page shows to be there.
    pub(super) async fn tell_page(
        &self,
        session: &CloudSession,
        ready: &ReadyTable,
        rows: usize,
        goes_on: bool,
    ) -> Step<()> {
        let due = self.told.advance(rows);
        let known = self.told.progress();
        if goes_on
            && known.is_some_and(|progress| progress.rows_left.is_none() && progress.rows == rows as u64)
            && let Some(all) = session.rows_about(ready.cloud.oid).await?
        {
            self.told.expect(all.saturating_sub(rows as u64));
        }
        if due {
            self.told.say(&self.log);
        }
        Ok(())
    }

    /// What waits goes to the cloud, in as many rounds as it takes.
    pub(super) fn tell_flush(&self) {
        if self.told.progress().is_none_or(|progress| progress.work != Work::Flush) {
            self.told.begin(Work::Flush, &self.log);
        }
    }

    /// A round is done.
    pub(super) async fn tell_round(&self, rows: usize) {
        if !self.told.advance(rows) {
            return;
        }
        // Counting a long journal takes a while, and this thread is the watcher's, too.
        let readers = self.parts.readers.clone();
        if let Ok(Ok(counts)) = actix_rt::task::spawn_blocking(move || readers.counts()).await {
            self.told.expect(counts.pending);
        }
        self.told.say(&self.log);
    }
}
