//! Who answers, and whether it still has what this device knows of it.

use super::cells::Cells as _;
use super::{CloudSession, Phase, Result, unexpected};
use crate::core::failure::{CloudFailure, FailureClass};
use crate::postgres::parse_uuid;
use crate::sqlite::Cursor;

/// Where a connection ends: what a dump or a clone of the database does not take along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whereabouts {
    /// The server's own number, which its standbys share.
    pub system: String,
    /// The database's number.
    pub database: String,
    /// The database's name.
    pub name: String,
    /// The timeline that is written; none on a replica, which writes none.
    pub timeline: Option<i64>,
}

/// What the ledger says of a device before a session settles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastSeen {
    /// When the ledger was last written for it, in microseconds since 1970. Only grows.
    pub at: i64,
    /// How many of its rounds took effect.
    pub number: i64,
}

impl CloudSession {
    /// Where this connection ends.
    pub async fn whereabouts(&self) -> Result<Whereabouts> {
        let rows = self.look_at(include_str!("../sql/postgres/whose.sql"), &[], Phase::Setup).await?;
        let row = rows.first().ok_or_else(|| unexpected("the server does not say who it is"))?;
        Ok(Whereabouts {
            system: row.cell(0)?,
            database: row.cell(1)?,
            name: row.cell(2)?,
            timeline: row.cell(3)?,
        })
    }

    /// As [`whereabouts`](Self::whereabouts), of a server that can be written to.
    ///
    /// # Errors
    /// For a replica.
    pub async fn writable_whereabouts(&self) -> Result<(Whereabouts, i64)> {
        let there = self.whereabouts().await?;
        match there.timeline {
            Some(timeline) => Ok((there, timeline)),
            None => {
                let mut failure = CloudFailure::new(
                    FailureClass::Credentials,
                    "a read-only replica answers (SQLSTATE 25006)",
                )
                .with_remedy("point the proxy at the primary, or promote this server");
                failure.sqlstate = Some("25006".to_owned());
                Err(failure)
            }
        }
    }

    /// The mark of whoever answers, which may be anybody's; none where there is none.
    pub async fn mark(&self) -> Result<Option<String>> {
        self.mark_in(Phase::Setup).await
    }

    pub(super) async fn mark_in(&self, phase: Phase) -> Result<Option<String>> {
        let there = self.look_at("SELECT to_regclass('tidewater.identity') IS NOT NULL", &[], phase).await?;
        let one = match there.as_slice() {
            [row] => row.cell(0),
            _ => Err(unexpected("an unexpected number of rows")),
        };
        match one.map_err(|failure| self.nonsense_in(phase, failure))? {
            true => Ok(self.read_identity(phase).await?.map(|(id, _)| id)),
            false => Ok(None),
        }
    }

    /// Who makes no sense when it is met for the first time is not PostgreSQL.
    pub(super) fn nonsense_in(&self, phase: Phase, failure: CloudFailure) -> CloudFailure {
        match phase {
            Phase::Startup => self.cloud.not_as_postgresql(failure.detail),
            _ => failure,
        }
    }

    /// What the ledger says of a device; none where it does not know it.
    pub async fn last_seen(&self, device: &str) -> Result<Option<LastSeen>> {
        let sql = "SELECT (extract(epoch FROM seen_at) * 1000000)::bigint, round_number \
                   FROM tidewater.devices WHERE id = $1";
        let rows = self.query(sql, &[&parse_uuid(device)?], Phase::Setup).await?;
        rows.first().map(|row| Ok(LastSeen { at: row.cell(0)?, number: row.cell(1)? })).transpose()
    }

    /// Writes into the ledger that this session was here, and how far it has read, and answers with the moment. Whoever has this
    /// in its history has everything that was read before. None where another session has settled since. And whether the cloud
    /// still knows from where this session reads on; where it does not, the device has to settle anew.
    pub async fn bear_witness(
        &self,
        device: &str,
        session: &str,
        cursor: Option<&Cursor>,
    ) -> Result<Option<(i64, bool)>> {
        let sql = include_str!("../sql/postgres/bear_witness.sql");
        let (xid, id) = (cursor.map(|cursor| cursor.xid.as_str()), cursor.map(|cursor| cursor.id));
        let rows =
            self.query(sql, &[&parse_uuid(device)?, &parse_uuid(session)?, &xid, &id], Phase::Setup).await?;
        rows.first().map(|row| Ok((row.cell(0)?, row.cell(1)?))).transpose()
    }
}
