//! What can go wrong for an app that embeds Tidewater, and whether trying again helps.

use tidewater_actors::messages::SyncError;
use tidewater_actors::sqlite::StoreError;
use tidewater_actors::supervision::Unanswered;

/// The error of the library.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The SQLite file, or a statement.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something that needs the cloud.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// An actor is being restarted. What was asked for may or may not have happened, if it had been delivered.
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
    /// As many writes are under way as may be. Nothing was done.
    #[error(
        "{0} writes are under way, which is all that sqlite.queue_max allows; try again when some have been answered"
    )]
    QueueFull(u32),
    /// The settings cannot be used.
    #[error("{0}")]
    Settings(String),
    /// Supervision gave up: the same actors ended too often in too short a time. [`crate::Database::open`] works again.
    #[error("{0}")]
    Failed(String),
    /// [`crate::Database::shutdown`] has been called.
    #[error("the database has been shut down")]
    ShutDown,
    /// The actors did not end in time. What was acknowledged is on the disk all the same.
    #[error("the actors did not end within {0} s; everything acknowledged is on the disk")]
    StillBusy(f64),
    /// The operating system refused a thread.
    #[error("a thread cannot be started: {0}")]
    Thread(String),
}

impl Error {
    /// Whether the same call can succeed later without anything being changed in it.
    pub fn retry_helps(&self) -> bool {
        match self {
            Self::Store(error) => error.retry_helps(),
            Self::Sync(error) => error.retry_helps(),
            Self::Unanswered(_) | Self::QueueFull(_) | Self::Thread(_) | Self::StillBusy(_) => true,
            Self::Settings(_) | Self::Failed(_) | Self::ShutDown => false,
        }
    }
}
