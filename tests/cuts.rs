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

use std::time::{Duration, Instant};

use harness::{Bench, PATIENCE, here, run, there, wait_until_available};
use tidewater::Database;
use tidewater::settings::Sources;
use tidewater_test_support::{FaultProxy, Message, Postgres, Trigger, compare};
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
    /// What passed in it, if somebody recorded that.
    messages: Vec<Message>,
    /// What passes in one for which everything is prepared.
    warm: Vec<Message>,
    /// The last line of the audit before it.
    audited: String,
    /// The longest that a history took.
    longest: Duration,
    /// The most connections, and lines of the log, that a history with one fault needed.
    most: (u64, usize),
    /// An open transaction holds back the feed of everybody on the server, so that each scene has one of its own.
    _server: Postgres,
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

/// One more, of which the bytes are counted from the one before it.
fn cut_again_after(proxy: &FaultProxy, to: To, bytes: u64) -> Trigger {
    match to {
        To::Server => proxy.cut_client_to_server_again_after(bytes),
        To::Client => proxy.cut_server_to_client_again_after(bytes),
    }
}

/// Cuts each connection that there is when it is used next.
fn cut_all(proxy: &FaultProxy, to: To) {
    for _ in 0..proxy.live() {
        cut_again_after(proxy, to, 0);
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

/// Where a client waits for an answer: it has sent these and nothing more.
fn questions(messages: &[Message]) -> Vec<u64> {
    let asks = |message: &Message| matches!(message.kind, b'Q' | b'S');
    toward(messages, To::Server).into_iter().filter(asks).map(|message| message.end).collect()
}

/// Every `step`-th of them, from another first one in every run.
fn some<T>(all: Vec<T>, step: usize) -> impl Iterator<Item = T> {
    all.into_iter().skip(random() as usize % step).step_by(step)
}

/// Another number in every call.
fn random() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::hash::RandomState::new().build_hasher().finish()
}

impl Scene {
    async fn new() -> Self {
        Self::with(|settings| settings).await
    }

    /// With a hurry in every timer that a failure starts, and none that would stir by itself.
    async fn with(change: impl FnOnce(Sources) -> Sources) -> Self {
        let server = Postgres::start();
        let bench = Bench::on(&server).await;
        bench.proxy.start();
        let settings = bench
            .settings()
            .set("proxy.retry_delay_s", 0.005)
            .set("proxy.max_retry_delay_s", 0.1)
            .set("proxy.listen_interval_s", 0.01)
            .set("proxy.health_interval_s", 3600)
            .set("circuit.open_s", 0.005)
            .set("sync.pull_interval_s", 3600)
            .set("sync.feed_poll_interval_s", 3600)
            .set("sync.feed_poll_first_ms", 60_000)
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
        let (longest, most) = (Duration::ZERO, (0, 0));
        let (messages, warm, audited) = (vec![], vec![], String::new());
        let mut scene =
            Self { bench, db, cloud, holder, n: 0, messages, warm, audited, longest, most, _server: server };
        scene.undisturbed().await;
        scene.undisturbed().await;
        scene
    }

    /// Histories without a fault, one on each connection that there is: afterwards every statement is prepared on all of them,
    /// and what passes in the next one is what passed in the last, with which this answers.
    async fn undisturbed(&mut self) -> Vec<Message> {
        for _ in 0..self.bench.proxy.live() {
            self.history("undisturbed", |proxy| proxy.record()).await;
            let total = |messages: &[Message]| BOTH.map(|to| length(messages, to)).iter().sum::<u64>();
            // On a connection where something had to be prepared there was more of it.
            if self.warm.is_empty() || total(&self.messages) < total(&self.warm) + 40 {
                self.warm.clone_from(&self.messages);
            }
        }
        self.warm.clone()
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
        self.messages = self.bench.proxy.recorded();
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
        let status = self.db.status_summary().await;
        let at_rest = waits == "0" && status.sync.pending == 0 && status.sync.state == "idle";
        (at_rest, format!("{waits} wait, {:?}, {status:?}", self.bench.proxy.stats()))
    }

    /// A history with one cut, if it comes so far; whether it did. What it takes to recover from it is bounded.
    async fn cut(&mut self, to: To, bytes: u64) -> bool {
        let what = format!("cut after {bytes} bytes to the {to:?}");
        let needed = self.need();
        let trigger = self.history(&what, |proxy| cut(proxy, to, bytes)).await;
        self.needed(needed, 1, &what);
        trigger.is_triggered()
    }

    /// How many connections and lines there were before something.
    fn need(&self) -> (u64, usize) {
        (self.bench.proxy.accepted(), self.bench.log.all().len())
    }

    /// Since then, so many faults have cost some connections and lines, and no hammering and no flood.
    fn needed(&mut self, (accepted, lines): (u64, usize), faults: usize, what: &str) {
        let connections = self.bench.proxy.accepted() - accepted;
        let new = self.bench.log.all().split_off(lines);
        assert!(connections <= 4 * faults as u64 + 1, "{what}: {connections} connections: {new:#?}");
        assert!(new.len() <= 4 * faults + 2, "{what}: {new:#?}");
        self.most = (self.most.0.max(connections), self.most.1.max(new.len()));
    }

    async fn close(self, what: &str) {
        println!(
            "{what}: {} histories; of those with a fault the longest took {} ms, {} connections and {} lines at most",
            self.n,
            self.longest.as_millis(),
            self.most.0,
            self.most.1,
        );
        self.db.shutdown().await.unwrap();
    }
}

/// One cut in a small round, in both directions: at a third of the borders of a message where somebody waits for the other, or one
/// byte earlier or later, and at some of the others. `make long` cuts at every byte.
#[actix_rt::test]
async fn cut_beside_every_message_a_round_takes_effect_once() {
    let mut scene = Scene::new().await;
    let (mut cuts, mut missed) = (0, 0);
    for to in BOTH {
        for at in 0..toward(&scene.undisturbed().await, to).len() {
            let kind = toward(&scene.warm, to).get(at).map(|message| message.kind);
            let turns = matches!(kind, Some(b'Q' | b'S' | b'Z'));
            let one_in = if turns { 3 } else { 12 };
            if !random().is_multiple_of(one_in) {
                continue;
            }
            let messages = toward(&scene.undisturbed().await, to);
            let Some(message) = messages.get(at).copied() else { continue };
            if scene.cut(to, message.end + random() % 3 - 1).await {
                cuts += 1;
            } else {
                missed += 1;
            }
        }
    }
    println!("{cuts} cuts, {missed} missed");
    // There is nothing beyond the last one.
    assert!(missed <= 6, "{missed} missed, {cuts} cuts");
    scene.close("beside every message").await;
}

/// The server has carried out what it was asked, and the answer is lost; COMMITs are among that.
#[actix_rt::test]
async fn carried_out_and_not_answered_a_round_takes_effect_once() {
    let mut scene = Scene::new().await;
    let answers = |messages: &[Message]| -> Vec<u64> {
        let ready = |message: &Message| message.kind == b'Z';
        let ends = toward(messages, To::Client).into_iter().filter(ready).map(|message| message.end);
        // Nothing of the first answer, or nothing of the one that follows.
        [0].into_iter().chain(ends).collect()
    };
    const ROUNDS: &str = "SELECT round_number FROM tidewater.devices";
    let mut unknown = 0;
    for at in 0..answers(&scene.undisturbed().await).len() - 1 {
        let answers = answers(&scene.undisturbed().await);
        let Some(bytes) = answers.get(at).copied() else { break };
        let (what, started) = (format!("unanswered after {bytes} bytes"), Instant::now());
        scene.begin().await;
        let before = there(&scene.cloud, ROUNDS).await;
        let trigger = scene.bench.proxy.cut_server_to_client_after(bytes);
        scene.write().await;
        trigger.triggered(PATIENCE).await;
        unknown += u32::from(there(&scene.cloud, ROUNDS).await != before);
        scene.end(&what, started).await;
    }
    println!("{unknown} times a round was in the cloud when its connection broke");
    assert!(unknown >= 2, "{unknown}");
    scene.close("carried out and not answered").await;
}

/// One cut more, wherever it is, meets the recovery from the first: a new connection, what it settles and prepares, the round
/// again.
async fn cut_again(step: usize) {
    let mut scene = Scene::new().await;
    let (mut again, mut missed) = (0, 0);
    for to in BOTH {
        scene
            .history("to learn what a recovery says", |proxy| {
                proxy.record();
                cut_all(proxy, to);
            })
            .await;
        let messages = toward(&scene.messages, to);
        let borders = messages.iter().flat_map(|message| [message.end, message.end - 1]).collect();
        for bytes in some(borders, step) {
            let what = format!("cut at once and after {bytes} bytes to the {to:?}");
            let needed = scene.need();
            let second = scene
                .history(&what, |proxy| {
                    cut_all(proxy, to);
                    cut_again_after(proxy, to, bytes)
                })
                .await;
            scene.needed(needed, 3, &what);
            if second.is_triggered() {
                again += 1;
            } else {
                missed += 1;
            }
        }
    }
    // Whether the watcher's question or the next cycle comes first differs, and so does where it ends.
    println!("{again} second cuts, {missed} missed");
    assert!(again > missed, "{again} second cuts, {missed} missed");
    scene.close("cut again").await;
}

/// Cut while it recovers from a cut.
#[actix_rt::test]
async fn cut_again_while_it_recovers_a_round_takes_effect_once() {
    cut_again(20).await;
}

/// Cut again and again, a round is tried again without anybody writing anything; neither the log nor the cloud has to bear
/// each attempt.
#[actix_rt::test]
async fn cut_many_times_in_a_row_it_goes_on_by_itself() {
    let mut scene = Scene::new().await;
    let total = length(&scene.undisturbed().await, To::Server);
    for times in [4, 12] {
        let what = format!("cut {times} times in a row");
        let needed = scene.need();
        let cuts = scene
            .history(&what, |proxy| {
                // Early enough that no attempt comes as far as a COMMIT, after which little is left to be cut.
                let next = |_| proxy.cut_client_to_server_again_after(random() % (total / 4));
                (0..times).map(next).collect::<Vec<_>>()
            })
            .await;
        let cut = cuts.iter().filter(|cut| cut.is_triggered()).count();
        println!("{what}: {cut}");
        assert!(cut * 2 > times, "{what}: {cut}");
        scene.needed(needed, times, &what);
    }
    scene.close("cut many times").await;
}

/// What an older session had sent, and nobody had carried out, arrives when its successor has settled or waits for it.
async fn delivered_late(step: usize) {
    let mut scene = Scene::new().await;
    let (mut fenced, mut awaited) = (0, 0);
    let questions_of = |messages: &[Message]| -> Vec<(u64, u64)> {
        let ends = questions(messages);
        [0].into_iter().chain(ends.iter().copied()).zip(ends.iter().copied()).collect()
    };
    let all = (0..questions_of(&scene.undisturbed().await).len()).flat_map(|at| [(at, 0), (at, 1), (at, 2)]);
    for (at, kind) in some(all.collect(), step) {
        let questions = questions_of(&scene.undisturbed().await);
        let Some((from, to)) = questions.get(at).copied() else { continue };
        // Nothing of the question has arrived, half of it, or all but one byte.
        let bytes = [from, from.midpoint(to), to - 1][kind];
        let (what, started) = (format!("late after {bytes} bytes"), Instant::now());
        let needed = scene.need();
        scene.begin().await;
        let session = there(&scene.cloud, "SELECT session FROM tidewater.devices").await;
        let parting = scene.bench.proxy.part_client_from_server_after(bytes);
        scene.write().await;
        parting.triggered(PATIENCE).await;
        loop {
            if there(&scene.cloud, "SELECT session FROM tidewater.devices").await != session {
                fenced += 1;
                break;
            }
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND \
                           application_name = 'tidewater' AND wait_event_type = 'Lock'";
            if there(&scene.cloud, waiting).await != "0" {
                awaited += 1;
                break;
            }
            // Nobody noticed: it was only asked whether anybody is there.
            let (at_rest, state) = scene.at_rest().await;
            if at_rest {
                break;
            }
            assert!(started.elapsed() < PATIENCE, "{what}: {state}");
        }
        parting.deliver(PATIENCE).await;
        scene.end(&what, started).await;
        scene.needed(needed, 1, &what);
    }
    println!("{fenced} came when the successor had settled, {awaited} while it waited");
    assert!(fenced > 0 && awaited > 0, "{fenced} {awaited}");
    scene.close("delivered late").await;
}

/// Bytes of an older round that were held back take effect once, or not at all, whenever they arrive.
#[actix_rt::test]
async fn bytes_that_are_delivered_late_take_effect_once() {
    delivered_late(3).await;
}

/// Both ends of a connection stay open and nothing passes any more.
async fn silent(step: usize) {
    let mut scene =
        Scene::with(|settings| settings.set("cloud.statement_timeout_s", 1).set("proxy.timeout_s", 1)).await;
    for to in BOTH {
        let all = 0..toward(&scene.undisturbed().await, to).len();
        for (turn, at) in some(all.collect(), step).enumerate() {
            let messages = toward(&scene.undisturbed().await, to);
            let Some(message) = messages.get(at).copied() else { continue };
            // Between two messages, or within one.
            let bytes = message.end - turn as u64 % 2;
            let what = format!("silent after {bytes} bytes to the {to:?}");
            let needed = scene.need();
            scene
                .history(&what, |proxy| match to {
                    To::Server => proxy.silence_client_to_server_after(bytes),
                    To::Client => proxy.silence_server_to_client_after(bytes),
                })
                .await;
            // The server finds out later than the client: until then the successor waits for locks, and asks again. And where
            // the machine is slow, what is only late counts as silent, too.
            scene.needed(needed, 5, &what);
        }
    }
    scene.close("silent").await;
}

/// On a connection that is open at both ends and silent, nobody waits for ever.
#[actix_rt::test]
async fn a_silent_connection_in_a_round_is_given_up() {
    silent(45).await;
}

/// Half a message arrived when its client was lost, and nobody tells the server: it waits for the other half with its locks, for
/// longer than anybody here is patient.
async fn half_a_message(step: usize) {
    let mut scene = Scene::with(|settings| settings.set("proxy.timeout_s", 1)).await;
    let all = 0..questions(&scene.undisturbed().await).len();
    let mut ended = 0;
    for at in some(all.collect(), step) {
        let Some(bytes) = questions(&scene.undisturbed().await).get(at).copied() else { continue };
        let what = format!("all but one byte of {bytes} arrived");
        let needed = scene.need();
        let parting = scene.history(&what, |proxy| proxy.part_client_from_server_after(bytes - 1)).await;
        // Where the machine is slow, an answer that is only late may count as none.
        scene.needed(needed, 5, &what);
        // The one who waits for half a message never gives up by itself.
        ended += u32::from(parting.is_server_gone());
    }
    println!("{ended} older sessions were ended");
    assert!(ended > 0);
    scene.close("half a message").await;
}

/// What an older session holds while it waits for the rest of a message, its successor gets.
#[actix_rt::test]
async fn a_session_lost_in_the_middle_of_a_message_holds_nobody_up() {
    half_a_message(6).await;
}

/// One cut at every byte of a small round, in both directions.
#[actix_rt::test]
#[ignore = "takes minutes"]
async fn cut_at_every_byte_a_round_takes_effect_once() {
    let setting = |name| std::env::var(name).map(|number| number.parse().unwrap());
    let step = setting("TIDEWATER_CUT_STEP").unwrap_or(1);
    let mut scene = Scene::new().await;
    for to in BOTH {
        let (mut bytes, mut cuts) = (setting("TIDEWATER_CUT_FROM").unwrap_or(0), 0);
        loop {
            let end = length(&scene.undisturbed().await, to);
            if bytes > end {
                break;
            }
            cuts += u64::from(scene.cut(to, bytes).await);
            bytes += step;
        }
        println!("{cuts} cuts to the {to:?}");
        assert!(cuts + 2 >= bytes / step, "{cuts} cuts in {bytes} bytes");
    }
    scene.close("at every byte").await;
}

/// The others, at every border of a message.
#[actix_rt::test]
#[ignore = "takes minutes"]
async fn cut_again_late_and_silent_at_every_message_a_round_takes_effect_once() {
    cut_again(1).await;
    delivered_late(1).await;
    half_a_message(1).await;
    silent(1).await;
}
