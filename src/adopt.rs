//! Saying to which cloud the file belongs.

use tidewater_actors::messages::{Adopt, AdoptCloud, Adoption};

use crate::database::Database;
use crate::error::Error;

impl Database {
    /// Looks which cloud answers and, unless it is only to look, makes the file belong to it: the way to go on with a database
    /// that the sync refuses, because it is a copy of the file's cloud or another one altogether.
    ///
    /// Nothing that the file knew of the old cloud counts any more. Every table is compared with the new one: where both have
    /// a row, what waits here stays pending and everything else follows the cloud; rows that only one side has go to the
    /// other. Nothing is deleted because of it. A crash leaves the file with the old cloud or with the new one.
    ///
    /// ```no_run
    /// # async fn example(db: tidewater::Database) -> Result<(), tidewater::Error> {
    /// let found = db.adopt(tidewater::Adopt::Look).await?;
    /// if let Some(identity) = found.answers.identity {
    ///     db.adopt(tidewater::Adopt::Identity(identity)).await?;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`SyncError`](crate::SyncError) when nobody answers, a replica does, or another cloud than the one that was named: the
    /// file belongs to where it belonged then.
    pub async fn adopt(&self, how: Adopt) -> Result<Adoption, Error> {
        let adoption = self.syncer()?.ask(AdoptCloud(how)).await??;
        if adoption.adopted {
            // What was held against the cloud is forgotten.
            self.reset().await?;
        }
        Ok(adoption)
    }
}
