//! An actix application that embeds Tidewater: its own actor takes notes, and hears when the cloud comes and goes.
//!
//! ```text
//! cargo run --example embed -- notes.db
//! ```
//!
//! Without a Cloud SQL Auth Proxy it says so once and works on the local file. Start the proxy, or any PostgreSQL, with
//! `CLOUD_SQL_DATABASE`, `CLOUD_SQL_USER` and `CLOUD_SQL_PASSWORD` set, and the notes go there.

use std::time::Duration;

use actix::prelude::*;
use slog::{Logger, info};
use tidewater::settings::Settings;
use tidewater::{AvailabilityChanged, Database, Error, Receipt, Statement, telemetry};

/// The application's own actor.
struct Notebook {
    db: Database,
    log: Logger,
}

/// Writes a note. The answer means that it is on the disk.
#[derive(Message)]
#[rtype(result = "Result<Receipt, Error>")]
struct Note(String);

impl Actor for Notebook {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let (db, me) = (self.db.clone(), ctx.address().recipient());
        ctx.spawn(actix::fut::wrap_future(async move {
            // An error would mean that the database is shut down, and then there is nothing to hear.
            let _ = db.subscribe(me).await;
        }));
    }
}

impl Handler<Note> for Notebook {
    type Result = ResponseFuture<Result<Receipt, Error>>;

    fn handle(&mut self, Note(body): Note, _: &mut Self::Context) -> Self::Result {
        let db = self.db.clone();
        Box::pin(async move {
            let insert = Statement::new("INSERT INTO note (body) VALUES (?1)").bind(body);
            Ok(db.write([insert]).await?.receipt)
        })
    }
}

impl Handler<AvailabilityChanged> for Notebook {
    type Result = ();

    fn handle(&mut self, changed: AvailabilityChanged, _: &mut Self::Context) {
        info!(self.log, "the notebook hears: Cloud SQL is {:?}", changed.status);
    }
}

#[actix_rt::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut settings = Settings::builder().process_environment();
    if let Some(path) = std::env::args().nth(1) {
        settings = settings.set("sqlite.path", path);
    }
    let settings = settings.build()?;
    let (log, _flushed_at_the_end) = telemetry::start(&settings.log);

    let db = Database::open(settings, log.clone()).await?;
    db.write([Statement::new(
        "CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, body TEXT NOT NULL)",
    )])
    .await?;
    let notebook = Notebook { db: db.clone(), log: log.clone() }.start();

    let receipt = notebook.send(Note("written before anybody asked for a network".into())).await??;
    let count: i64 = db.read(|conn| conn.query_row("SELECT count(*) FROM note", [], |row| row.get(0)))?;
    info!(log, "{count} notes in the file, {} row(s) pending", db.status_summary().await.sync.pending);

    match actix_rt::time::timeout(Duration::from_secs(3), db.synced(&receipt)).await {
        Ok(synced) => {
            synced?;
            info!(log, "the cloud has the note");
        }
        Err(_) => {
            info!(log, "the cloud does not have the note yet; it goes there by itself, whenever that is")
        }
    }
    db.shutdown().await?;
    Ok(())
}
