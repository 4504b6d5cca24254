//! Cuts at every stage of a round: each change takes effect once (P3), nothing is lost, and it goes on by itself.
//!
//! ```text
//! a history   edits in the cloud that the feed shows, and such that it cannot show yet
//!             a fault is armed at a byte; one local write: insert, update, delete, merges, conflicts
//!             the journal empties by itself ─▶ audit, conflict logs, ledger and both files are examined
//! ```
//!
//! Where a message ends, and how long a round is, is learned from the history before. `TIDEWATER_CUT_STEP` makes the long
//! test take every n-th byte only.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod harness;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use harness::{Bench, PATIENCE, here, run, there, wait_until_available};
use tidewater::Database;
use tidewater::settings::Sources;
use tidewater_test_support::{FaultProxy, Message, Trigger, compare};
use tokio_postgres::Client;

/// How often a condition is looked at that is expected within milliseconds.
const STEP: Duration = Duration::from_millis(1);

/// The owner's own trigger writes down what is done to each row and by whom, so that "once" is seen and not assumed.
const AUDIT: &str = "
    CREATE TABLE audit (n bigserial PRIMARY KEY, who text NOT NULL, op text NOT NULL, id bigint NOT NULL, a text, b text);
    CREATE FUNCTION audited() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO audit (who, op, id, a, b) VALUES (current_setting('application_name'), TG_OP,
            coalesce(NEW.id, OLD.id), coalesce(NEW.a, OLD.a), coalesce(NEW.b, OLD.b));
        RETURN NULL; END $$;
    CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON note
        FOR EACH ROW EXECUTE FUNCTION audited();";

/// Rows that come and go have numbers from here on.
const FIRST: u64 = 10_000;

/// One device, somebody else in the cloud, and somebody whose open transaction keeps changes out of the feed.
struct Scene {
    bench: Bench,
    db: Database,
    cloud: Client,
    holder: Client,
    /// The number of the history.
    n: u64,
    /// The last line of the audit before it.
    audited: String,
    /// The longest that a history took.
    longest: Duration,
    /// The most connections that a history with one fault needed.
    most_connections: u64,
}

/// Which end of the line loses a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum To {
    Server,
    Client,
}

const BOTH: [To; 2] = [To::Server, To::Client];

/// A cut after so many bytes of a history in one direction.
fn cut(proxy: &FaultProxy, to: To, bytes: u64) -> Trigger {
    match to {
        To::Server => proxy.cut_client_to_server_after(bytes),
        To::Client => proxy.cut_server_to_client_after(bytes),
    }
}

/// The messages in one direction.
fn toward(messages: &[Message], to: To) -> Vec<Message> {
    messages.iter().filter(|message| message.to_server == (to == To::Server)).copied().collect()
}

/// How many bytes a history has in one direction.
fn length(messages: &[Message], to: To) -> u64 {
    toward(messages, to).last().map_or(0, |message| message.end)
}

impl Scene {
    async fn new() -> Self {
        Self::with(|settings| settings).await
    }

    /// With a hurry in every timer that a failure starts, and none that would stir by itself.
    async fn with(change: impl FnOnce(Sources) -> Sources) -> Self {
        let bench = Bench::new().await;
        bench.proxy.start();
        let settings = bench
            .settings()
            .set("proxy.retry_delay_s", 0.005)
            .set("proxy.max_retry_delay_s", 0.1)
            .set("proxy.listen_interval_s", 0.01)
            .set("proxy.health_interval_s", 3600)
            .set("circuit.open_s", 0.005)
            .set("sync.pull_interval_s", 3600)
            .set("sync.retry_delay_s", 0.005)
            .set("sync.debounce_ms", 0);
        let db = bench.open_with(change(settings)).await;
        run(&db, "CREATE TABLE note (id INTEGER PRIMARY KEY, a TEXT, b TEXT)").await;
        let rows = (1..=7).map(|id| format!("INSERT INTO note VALUES ({id}, 'a', 'b');\n"));
        run(&db, &format!("{}INSERT INTO note VALUES ({FIRST}, 'a', 'b')", rows.collect::<String>())).await;
        wait_until_available(&db).await;
        while db.flush().await.is_err() {}
        bench.wait_until_equal(&db, &["note"]).await;
        bench.cloud.execute_batch(AUDIT).await;
        let (cloud, holder) = (bench.cloud.connect().await, bench.cloud.connect().await);
        let (longest, most_connections) = (Duration::ZERO, 0);
        let mut scene =
            Self { bench, db, cloud, holder, n: 0, audited: String::new(), longest, most_connections };
        // Afterwards every statement is prepared, and a history is as long as the next.
        scene.undisturbed().await;
        scene
    }

    /// A history without a fault; answers with what passed.
    async fn undisturbed(&mut self) -> Vec<Message> {
        let accepted = self.bench.proxy.accepted();
        self.history("undisturbed", |proxy| proxy.record()).await;
        assert_eq!(self.bench.proxy.accepted(), accepted, "the connection that was there is enough");
        self.bench.proxy.recorded()
    }

    /// A history with a fault that is armed right before the local write. It goes on by itself to its end, and everything is
    /// examined.
    async fn history<T>(&mut self, what: &str, arm: impl FnOnce(&FaultProxy) -> T) -> T {
        let (n, started) = (self.begin().await, Instant::now());
        let armed = arm(&self.bench.proxy);
        self.write().await;
        self.end(&format!("history {n}, {what}"), started).await;
        armed
    }

    /// What others do: rows 4 and 5 are in the feed, 6 and 7 only a round meets.
    async fn begin(&mut self) -> u64 {
        self.n += 1;
        let n = self.n;
        self.audited = there(&self.cloud, "SELECT coalesce(max(n), 0) FROM audit").await;
        let shown =
            format!("UPDATE note SET b = 'c{n:05}' WHERE id = 4; UPDATE note SET a = 'c{n:05}' WHERE id = 5");
        self.cloud.batch_execute(&shown).await.unwrap();
        self.holder.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
        let hidden =
            format!("UPDATE note SET b = 'c{n:05}' WHERE id = 6; UPDATE note SET a = 'c{n:05}' WHERE id = 7");
        self.cloud.batch_execute(&hidden).await.unwrap();
        n
    }

    async fn write(&self) {
        let (n, new) = (self.n, FIRST + self.n);
        let write = format!(
            "INSERT INTO note VALUES ({new}, 'l{n:05}', 'b');\nDELETE FROM note WHERE id = {};\n\
             UPDATE note SET a = 'l{n:05}' WHERE id IN (2, 4, 5, 6, 7)",
            new - 1
        );
        run(&self.db, &write).await;
    }

    /// Waits until nothing is left to do, which nobody asks for, and examines everything.
    async fn end(&mut self, what: &str, started: Instant) {
        let n = self.n;
        loop {
            let (at_rest, state) = self.at_rest().await;
            if at_rest {
                break;
            }
            assert!(started.elapsed() < PATIENCE, "{what}: it stalls: {state}\n{:#?}", self.bench.log.all());
            tokio::time::sleep(STEP).await;
        }
        self.longest = self.longest.max(started.elapsed());
        self.bench.proxy.clear_hooks();
        self.holder.batch_execute("COMMIT").await.unwrap();

        let sql = format!(
            "SELECT string_agg(concat_ws(' ', op, id, a, b), ', ' ORDER BY id, n) FROM audit WHERE who = 'tidewater' \
             AND n > {}",
            self.audited
        );
        let (old, new) = (FIRST + n - 1, FIRST + n);
        let gone = if n == 1 { "a b".to_owned() } else { format!("l{:05} b", n - 1) };
        let expected = format!(
            "UPDATE 2 l{n:05} b, UPDATE 4 l{n:05} c{n:05}, UPDATE 5 l{n:05} b, UPDATE 6 l{n:05} c{n:05}, \
             UPDATE 7 l{n:05} b, DELETE {old} {gone}, INSERT {new} l{n:05} b"
        );
        assert_eq!(there(&self.cloud, &sql).await, expected, "{what}: what the cloud was told");

        let local = "SELECT group_concat(key || column || local || cloud || kept, ', ') FROM \
                     (SELECT * FROM _tidewater_conflicts ORDER BY id DESC LIMIT 2)";
        let cloud = "SELECT string_agg(key || col || local || cloud || kept, ', ' ORDER BY id DESC) FROM \
                     (SELECT * FROM tidewater.conflicts ORDER BY id DESC LIMIT 2) AS last";
        let lost = |id| format!("[{id}]a\"l{n:05}\"\"c{n:05}\"local");
        let conflicts = format!("{}, {}", lost(7), lost(5));
        assert_eq!(here(&self.db, local), conflicts, "{what}: the conflicts here");
        assert_eq!(there(&self.cloud, cloud).await, conflicts, "{what}: the conflicts there");
        let count = (2 * n).to_string();
        assert_eq!(here(&self.db, "SELECT count(*) FROM _tidewater_conflicts"), count, "{what}");
        assert_eq!(there(&self.cloud, "SELECT count(*) FROM tidewater.conflicts").await, count, "{what}");

        // One device, whose file and ledger agree.
        let ledger = there(
            &self.cloud,
            "SELECT string_agg(id || ' ' || round || ' ' || round_number, ', ') FROM tidewater.devices",
        )
        .await;
        let link = "SELECT group_concat(value, ' ') FROM (SELECT value FROM _tidewater_meta WHERE key IN \
                    ('device', 'last_round', 'round_number') ORDER BY key)";
        assert_eq!(ledger, here(&self.db, link), "{what}: the ledger");
        // Only now somebody asks: what the feed could not show comes with it.
        while let Err(error) = self.db.flush().await {
            assert!(started.elapsed() < PATIENCE, "{what}: {error}");
        }
        let differences = compare::tables_differ(&self.bench.path(), &self.cloud, "public", &["note"]).await;
        assert!(differences.is_empty(), "{what}: {differences:#?}");
        assert_eq!(
            here(&self.db, "SELECT group_concat(a || b, ' ') FROM note WHERE id IN (4, 6)"),
            format!("l{n:05}c{n:05} l{n:05}c{n:05}")
        );
    }

    /// Whether nothing waits, nothing is under way, and nobody has anything to tell any more.
    async fn at_rest(&self) -> (bool, String) {
        let waits = "SELECT (SELECT count(*) FROM _tidewater_journal_1) + (SELECT count(*) FROM _tidewater_flight_1) \
                     + (SELECT count(*) FROM _tidewater_round) + (SELECT count(*) FROM _tidewater_conflicts WHERE id > \
                     coalesce((SELECT value FROM _tidewater_meta WHERE key = 'conflicts_told'), 0))";
        let waits = here(&self.db, waits);
        if waits != "0" {
            return (false, format!("{waits} wait, {:?}", self.bench.proxy.stats()));
        }
        let status = self.db.status_summary().await;
        (status.sync.pending == 0 && status.sync.state == "idle", format!("{status:?}"))
    }

    /// A history with one cut, if it comes so far; whether it did. What it takes to recover from it is bounded.
    async fn cut(&mut self, to: To, bytes: u64) -> bool {
        let (accepted, lines) = (self.bench.proxy.accepted(), self.bench.log.all().len());
        let what = format!("cut after {bytes} bytes to the {to:?}");
        let trigger = self.history(&what, |proxy| cut(proxy, to, bytes)).await;
        let connections = self.bench.proxy.accepted() - accepted;
        let new = self.bench.log.all().split_off(lines);
        assert!(connections <= 6, "{what}: {connections} connections: {new:#?}");
        assert!(new.len() <= 8, "{what}: {new:#?}");
        self.most_connections = self.most_connections.max(connections);
        trigger.is_triggered()
    }

    async fn close(self, what: &str) {
        println!(
            "{what}: {} histories, the longest took {} ms; at most {} connections each; {} lines in all",
            self.n,
            self.longest.as_millis(),
            self.most_connections,
            self.bench.log.all().len()
        );
        self.db.shutdown().await.unwrap();
    }
}

/// One cut in a small round, at every border of a message and beside it, in both directions.
#[actix_rt::test]
async fn cut_beside_every_message_a_round_takes_effect_once() {
    let mut scene = Scene::new().await;
    let messages = scene.undisturbed().await;
    println!("{messages:?}");
    let (mut cuts, mut missed) = (0, 0);
    for to in BOTH {
        for at in 0..toward(&messages, to).len() {
            for beside in [0, 1, 2] {
                // The last one without a fault has just shown where it ends.
                let messages = scene.undisturbed().await;
                let Some(message) = toward(&messages, to).get(at).copied() else { continue };
                if scene.cut(to, message.end + beside - 1).await { cuts += 1 } else { missed += 1 }
            }
        }
    }
    println!("{cuts} cuts, {missed} missed");
    scene.close("beside every message").await;
}
