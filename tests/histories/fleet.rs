//! Five devices and plain SQL, and what a plan does to them.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use tidewater::{Database, Statement, Value};
use tidewater_test_support::{Postgres, wait};
use tokio_postgres::Client;

use crate::harness::{Bench, here};
use crate::judge::{self, Evidence, Lost, Noted, Row, Tally};
use crate::plan::{DEVICES, Event, KEYS, Op, Plan, Write, Writer};

/// Until everything is quiet and equal.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The same while a failure is made smaller.
const SHORT_PATIENCE: Duration = Duration::from_secs(8);

/// For how long a cycle that was asked for is waited for: it may have to wait for a lock that this test holds.
const CYCLE: Duration = Duration::from_secs(2);

/// So many runs are spent on making a failure smaller.
const SHRINKS_MAX: usize = 60;

/// One table per policy.
pub(crate) const TABLES: [&str; 3] = ["by_newest", "by_local", "by_cloud"];

/// Values have so many digits, and nothing else has, so that they are found in any text.
pub(crate) const FIRST_VALUE: i64 = 1_000_000_000;

/// The owner's own triggers write down what was replaced by what: without a key, that table stays here.
fn schema() -> Vec<Statement> {
    let mut statements =
        vec!["CREATE TABLE noted (tbl TEXT, id INTEGER, op TEXT, old_a, new_a, old_b, new_b)".to_owned()];
    for table in TABLES {
        statements.push(format!("CREATE TABLE {table} (id INTEGER PRIMARY KEY, a INTEGER, b INTEGER)"));
        for (op, old, new) in [
            ("INSERT", ["NULL", "NULL"], ["new.a", "new.b"]),
            ("UPDATE", ["old.a", "old.b"], ["new.a", "new.b"]),
            ("DELETE", ["old.a", "old.b"], ["NULL", "NULL"]),
        ] {
            let row = if op == "DELETE" { "old" } else { "new" };
            statements.push(format!(
                "CREATE TRIGGER noted_{table}_{op} AFTER {op} ON {table} BEGIN INSERT INTO noted VALUES \
                 ('{table}', {row}.id, '{op}', {}, {}, {}, {}); END",
                old[0], new[0], old[1], new[1]
            ));
        }
    }
    statements.into_iter().map(Statement::new).collect()
}

/// The same for plain SQL: one edit, under the row's lock, with a note of what it replaced.
const EDIT: &str = "
    CREATE TABLE noted (n bigserial PRIMARY KEY, tbl text, id bigint, op text, old_a bigint, new_a bigint, old_b bigint,
        new_b bigint);
    CREATE FUNCTION edit(t text, k bigint, op text, x bigint, y bigint) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE old record; present int; inserted int;
    BEGIN
        EXECUTE format('SELECT a, b FROM %I WHERE id = $1 FOR UPDATE', t) INTO old USING k;
        GET DIAGNOSTICS present = ROW_COUNT;
        IF present = 0 THEN
            IF op <> 'put' THEN RETURN; END IF;
            EXECUTE format('INSERT INTO %I VALUES ($1, $2, $3) ON CONFLICT DO NOTHING', t) USING k, x, y;
            GET DIAGNOSTICS inserted = ROW_COUNT;
            IF inserted = 1 THEN INSERT INTO noted VALUES (DEFAULT, t, k, 'INSERT', NULL, x, NULL, y); END IF;
        ELSIF op = 'delete' THEN
            EXECUTE format('DELETE FROM %I WHERE id = $1', t) USING k;
            INSERT INTO noted VALUES (DEFAULT, t, k, 'DELETE', old.a, NULL, old.b, NULL);
        ELSE
            IF op = 'a' THEN y := old.b; ELSIF op = 'b' THEN x := old.a; END IF;
            EXECUTE format('UPDATE %I SET a = $2, b = $3 WHERE id = $1', t) USING k, x, y;
            INSERT INTO noted VALUES (DEFAULT, t, k, 'UPDATE', old.a, x, old.b, y);
        END IF;
    END $$";

struct Device {
    bench: Bench,
    db: Option<Database>,
    clock_s: i64,
}

impl Device {
    async fn open(&mut self) {
        let mut settings = self.bench.settings();
        for (key, value) in [
            ("proxy.retry_delay_s", "0.05"),
            ("proxy.max_retry_delay_s", "0.2"),
            ("circuit.open_s", "0.05"),
            ("sync.retry_delay_s", "0.05"),
            ("sync.trim_interval_s", "0.5"),
            ("supervisor.restarts_max", "100000"),
            ("tables.by_local.conflicts", "local"),
            ("tables.by_cloud.conflicts", "cloud"),
        ] {
            settings = settings.set(key, value);
        }
        let settings = settings.set("sync.clock_offset_s", self.clock_s).build().unwrap();
        // The one that was dropped may hold the file for a moment longer.
        let opened = wait::until("the file to be free", PATIENCE, async || {
            Database::open(settings.clone(), self.bench.log.logger()).await.map_err(|error| error.to_string())
        });
        self.db = Some(opened.await);
    }

    fn db(&self) -> &Database {
        self.db.as_ref().unwrap()
    }

    /// A whole cycle, if there is one.
    async fn sync(&self) {
        // Offline, or a lock that this test holds: the next step comes all the same.
        let _ = tokio::time::timeout(CYCLE, self.db().flush()).await;
    }
}

pub(crate) struct Fleet {
    devices: Vec<Device>,
    sql: Client,
    /// Plain SQL's open transaction, or its next one.
    late: Client,
    is_open: bool,
    next_id: i64,
    next_value: i64,
    /// What the last run left behind, for its story.
    evidence: Evidence,
    base: i64,
    _scenario: fail::FailScenario<'static>,
}

impl Fleet {
    pub(crate) async fn new() -> Self {
        let scenario = fail::FailScenario::setup();
        silence_planned_panics();
        let first = Bench::on(Postgres::shared()).await;
        let others: Vec<Bench> = (1..DEVICES).map(|_| first.another()).collect();
        let (sql, late) = (first.cloud.connect().await, first.cloud.connect().await);
        let mut devices: Vec<Device> = std::iter::once(first)
            .chain(others)
            .map(|bench| Device { bench, db: None, clock_s: 0 })
            .collect();
        for device in &mut devices {
            device.open().await;
            device.db().write(schema()).await.unwrap();
            device.bench.proxy.start();
            device.bench.wait_until_equal(device.db(), &TABLES).await;
        }
        sql.batch_execute(EDIT).await.unwrap();
        Self {
            devices,
            sql,
            late,
            is_open: false,
            next_id: 1,
            next_value: FIRST_VALUE,
            evidence: Evidence::default(),
            base: 0,
            _scenario: scenario,
        }
    }

    pub(crate) async fn end(self) {
        for device in self.devices {
            device.db.unwrap().shutdown().await.unwrap();
        }
    }

    /// Runs the plan on keys that nobody had before, and answers with what is wrong, by history.
    pub(crate) async fn run(
        &mut self,
        plan: &Plan,
        patience: Duration,
    ) -> Result<Tally, Vec<(usize, String)>> {
        self.base = self.next_id;
        self.next_id += i64::try_from(plan.histories).unwrap() * KEYS;
        let logged = self.logged().await;
        self.plant(plan).await;
        for phase in &plan.phases {
            for event in &phase.events {
                self.perform(*event).await;
            }
            self.write(&phase.writes).await;
        }
        self.come_to_rest().await;
        let mut stuck = BTreeMap::new();
        let equal = wait_for_equal(patience, async || {
            stuck = self.differences().await;
            stuck.is_empty()
        })
        .await;
        self.evidence = self.collect(&logged).await;
        if !equal {
            return Err(stuck
                .into_iter()
                .map(|(id, what)| (self.history_of(id), format!("does not converge: {what}")))
                .collect());
        }
        let (wrong, tally) = judge::judge(&self.evidence, self.base);
        if wrong.is_empty() {
            return Ok(tally);
        }
        Err(wrong.into_iter().map(|(id, what)| (self.history_of(id), what)).collect())
    }

    /// What would be wrong with the last run if nothing of it were on record.
    pub(crate) fn judged_without_records(&mut self) -> Vec<String> {
        self.evidence.lost.clear();
        judge::judge(&self.evidence, self.base).0.into_iter().map(|(_, what)| what).collect()
    }

    /// From now on the cloud keeps a third of the rows as they are when a device updates them, and says nothing.
    pub(crate) async fn swallow_updates(&self) {
        let mut sql =
            "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END';"
                .to_owned();
        for table in TABLES {
            sql += &format!(
                "CREATE TRIGGER swallow BEFORE UPDATE ON {table} FOR EACH ROW \
                 WHEN (new.id % 3 = 1 AND current_setting('tidewater.device', true) <> '') EXECUTE FUNCTION swallow();"
            );
        }
        self.sql.batch_execute(&sql).await.unwrap();
    }

    /// What is known of a history of the last run.
    pub(crate) fn story(&self, history: usize) -> String {
        let first = self.base + i64::try_from(history).unwrap() * KEYS;
        self.evidence.story(first..first + KEYS)
    }

    /// A history alone, with everything left out that it fails without as well.
    pub(crate) async fn shrink(&mut self, plan: &Plan, history: usize) -> String {
        let mut best = plan.alone(history);
        let mut left = SHRINKS_MAX;
        if self.run(&best, SHORT_PATIENCE).await.is_ok() {
            return format!("(alone it does not fail again; as planned)\n{best}");
        }
        let mut step = 0;
        while step < best.steps() && left > 0 {
            left -= 1;
            let less = best.without(step);
            match self.run(&less, SHORT_PATIENCE).await {
                Ok(_) => step += 1,
                Err(_) => best = less,
            }
        }
        // The last run may have been one that did not fail.
        let _ = self.run(&best, SHORT_PATIENCE).await;
        format!("{best}{}", self.story(history))
    }

    fn history_of(&self, id: i64) -> usize {
        usize::try_from((id - self.base) / KEYS).unwrap()
    }

    /// The rows that are everywhere before the history begins.
    async fn plant(&mut self, plan: &Plan) {
        let mut ids: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for history in 0..plan.histories {
            for key in 0..KEYS - 1 {
                let id = self.base + i64::try_from(history).unwrap() * KEYS + key;
                let (a, b) = (self.value(), self.value());
                ids.entry(table_of(history)).or_default().push(format!("({id}, {a}, {b})"));
            }
        }
        for (table, rows) in ids {
            let insert = format!("INSERT INTO {table} (id, a, b) VALUES {}", rows.join(", "));
            self.sql.batch_execute(&insert).await.unwrap();
        }
        let devices = &self.devices;
        wait::until("the first rows to be everywhere", PATIENCE, async || {
            join_all(devices.iter().map(Device::sync)).await;
            let missing = self.differences().await;
            if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
        })
        .await;
    }

    async fn perform(&mut self, event: Event) {
        match event {
            Event::Leave(device) => self.devices[device].bench.proxy.stop(),
            Event::Return(device) => self.devices[device].bench.proxy.start(),
            Event::Crash(device, clock_s) => {
                let device = &mut self.devices[device];
                drop(device.db.take());
                device.clock_s = clock_s;
                device.open().await;
            }
            Event::Restart(device, clock_s) => {
                let is_open = self.is_open;
                let device = &mut self.devices[device];
                if let Some(db) = device.db.take()
                    && !is_open
                {
                    db.shutdown().await.unwrap();
                }
                device.clock_s = clock_s;
                device.open().await;
            }
            Event::Cut(device, bytes) => {
                drop(self.devices[device].bench.proxy.cut_client_to_server_after(bytes));
            }
            Event::Panic(point) => fail::cfg(point, "1*panic(planned)").unwrap(),
            Event::Begin => {
                self.late.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
                self.is_open = true;
            }
            Event::Commit if self.is_open => self.commit().await,
            Event::Commit => {}
            Event::Sync(device) => self.devices[device].sync().await,
        }
    }

    async fn commit(&mut self) {
        self.is_open = false;
        self.late.batch_execute("COMMIT").await.unwrap();
    }

    fn value(&mut self) -> i64 {
        self.next_value += 1;
        self.next_value
    }

    /// Everybody writes at the same time.
    async fn write(&mut self, writes: &[Write]) {
        let mut here: BTreeMap<usize, Vec<Statement>> = BTreeMap::new();
        let mut there = vec![];
        for write in writes {
            let id = self.base + i64::try_from(write.history).unwrap() * KEYS + write.key;
            let (table, x, y) = (table_of(write.history), self.value(), self.value());
            match write.writer {
                Writer::Device(device) => {
                    here.entry(device).or_default().push(statement(write.op, table, id, x, y));
                }
                Writer::Sql => there.push((id, table, word(write.op), x, y)),
            }
        }
        // In the order of the keys, as everybody locks them.
        there.sort_unstable();
        let devices = &self.devices;
        let local = here.into_iter().map(async |(device, statements)| {
            for unit in statements.chunks(40) {
                devices[device].db().write(unit.to_vec()).await.unwrap();
            }
        });
        let is_open = self.is_open;
        let remote = async {
            for some in there.chunks(40) {
                let calls: Vec<String> = some
                    .iter()
                    .map(|(id, table, op, x, y)| format!("SELECT edit('{table}', {id}, '{op}', {x}, {y})"))
                    .collect();
                let client = if is_open { &self.late } else { &self.sql };
                match client.batch_execute(&calls.join("; ")).await {
                    Ok(()) => {}
                    // A deadlock with a round: nothing of it happened, in an open transaction nothing at all.
                    Err(error) if error.code().is_some_and(|code| code.code() == "40P01") => {
                        if is_open {
                            client.batch_execute("ROLLBACK; BEGIN").await.unwrap();
                        }
                    }
                    Err(error) => panic!("{error:?}"),
                }
            }
        };
        futures_util::join!(join_all(local), remote);
    }

    /// Nothing stands in anybody's way any more.
    async fn come_to_rest(&mut self) {
        if self.is_open {
            self.commit().await;
        }
        for (point, _) in fail::list() {
            fail::remove(point);
        }
        for device in &self.devices {
            device.bench.proxy.clear_hooks();
            device.bench.proxy.start();
        }
    }

    /// The rows of this run that are not the same everywhere, or that something waits of.
    async fn differences(&self) -> BTreeMap<i64, String> {
        let cloud = self.rows_there().await;
        let mut found = BTreeMap::new();
        for (n, device) in self.devices.iter().enumerate() {
            let rows = rows_here(device.db(), self.base);
            for id in cloud.keys().chain(rows.keys()) {
                let (here, there) = (rows.get(id), cloud.get(id));
                if here != there {
                    found.entry(*id).or_insert(format!("device {n} has {here:?}, the cloud {there:?}"));
                }
            }
            let pending = device.db().status_summary().await.sync;
            if pending.pending + pending.parked > 0 {
                found.entry(self.base).or_insert_with(|| format!("device {n}: {pending:?}"));
            }
        }
        found
    }

    async fn rows_there(&self) -> BTreeMap<i64, Row> {
        let mut rows = BTreeMap::new();
        for table in TABLES {
            let sql = format!("SELECT id, a, b FROM {table} WHERE id >= $1");
            for row in self.sql.query(&sql, &[&self.base]).await.unwrap() {
                rows.insert(row.get(0), [row.get(1), row.get(2)]);
            }
        }
        rows
    }

    /// The last conflict of each log.
    async fn logged(&self) -> Vec<i64> {
        let last = "SELECT coalesce(max(id), 0) FROM";
        let mut logged: Vec<i64> = self
            .devices
            .iter()
            .map(|device| here(device.db(), &format!("{last} _tidewater_conflicts")).parse().unwrap())
            .collect();
        logged.push(self.sql.query_one(&format!("{last} tidewater.conflicts"), &[]).await.unwrap().get(0));
        logged
    }

    async fn collect(&self, logged: &[i64]) -> Evidence {
        let mut evidence = Evidence { rows: self.rows_there().await, ..Evidence::default() };
        for (n, device) in self.devices.iter().enumerate() {
            let noted = device.db().read(|conn| {
                conn.prepare(
                    "SELECT id, op, old_a, new_a, old_b, new_b FROM noted WHERE id >= ?1 ORDER BY rowid",
                )?
                .query_map([self.base], |row| {
                    Ok(Noted {
                        writer: Writer::Device(n),
                        id: row.get(0)?,
                        op: row.get(1)?,
                        old: [row.get(2)?, row.get(4)?],
                        new: [row.get(3)?, row.get(5)?],
                    })
                })?
                .collect::<Result<Vec<_>, _>>()
            });
            evidence.noted.extend(noted.unwrap());
            let lost = device.db().read(|conn| {
                conn.prepare(
                    "SELECT key, column, local, cloud, kept FROM _tidewater_conflicts WHERE id > ?1 ORDER BY id",
                )?
                .query_map([logged[n]], |row| {
                    Ok(Lost {
                        log: format!("device {n}"),
                        key: row.get(0)?,
                        column: row.get(1)?,
                        local: row.get(2)?,
                        cloud: row.get(3)?,
                        kept: row.get(4)?,
                    })
                })?
                .collect::<Result<Vec<_>, _>>()
            });
            evidence.lost.extend(lost.unwrap());
        }
        let sql = "SELECT id, op, old_a, new_a, old_b, new_b FROM noted WHERE id >= $1 ORDER BY n";
        for row in self.sql.query(sql, &[&self.base]).await.unwrap() {
            evidence.noted.push(Noted {
                writer: Writer::Sql,
                id: row.get(0),
                op: row.get(1),
                old: [row.get(2), row.get(4)],
                new: [row.get(3), row.get(5)],
            });
        }
        let sql = "SELECT key::text, col, local::text, cloud::text, kept FROM tidewater.conflicts WHERE id > $1 ORDER BY id";
        for row in self.sql.query(sql, &[&logged[DEVICES]]).await.unwrap() {
            evidence.lost.push(Lost {
                log: "the cloud".to_owned(),
                key: row.get(0),
                column: row.get(1),
                local: row.get(2),
                cloud: row.get(3),
                kept: row.get(4),
            });
        }
        evidence
    }
}

/// [`wait::until`] that answers instead of failing.
async fn wait_for_equal(patience: Duration, mut holds: impl AsyncFnMut() -> bool) -> bool {
    let began = std::time::Instant::now();
    while began.elapsed() < patience {
        if holds().await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

fn rows_here(db: &Database, base: i64) -> BTreeMap<i64, Row> {
    let mut rows = BTreeMap::new();
    for table in TABLES {
        let sql = format!("SELECT id, a, b FROM {table} WHERE id >= ?1");
        let of = db.read(|conn| {
            conn.prepare_cached(&sql)?
                .query_map([base], |row| Ok((row.get(0)?, [row.get(1)?, row.get(2)?])))?
                .collect::<Result<Vec<(i64, Row)>, _>>()
        });
        rows.extend(of.unwrap());
    }
    rows
}

/// A table, and so a policy, per history.
fn table_of(history: usize) -> &'static str {
    TABLES[history % TABLES.len()]
}

fn word(op: Op) -> &'static str {
    match op {
        Op::A => "a",
        Op::B => "b",
        Op::Both => "both",
        Op::Put => "put",
        Op::Delete => "delete",
    }
}

fn statement(op: Op, table: &str, id: i64, x: i64, y: i64) -> Statement {
    let (sql, params) = match op {
        Op::A => (format!("UPDATE {table} SET a = ?2 WHERE id = ?1"), vec![id, x]),
        Op::B => (format!("UPDATE {table} SET b = ?2 WHERE id = ?1"), vec![id, x]),
        Op::Both => (format!("UPDATE {table} SET a = ?2, b = ?3 WHERE id = ?1"), vec![id, x, y]),
        Op::Put => (
            format!(
                "INSERT INTO {table} VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET a = excluded.a, b = excluded.b"
            ),
            vec![id, x, y],
        ),
        Op::Delete => (format!("DELETE FROM {table} WHERE id = ?1"), vec![id]),
    };
    Statement { sql, params: params.into_iter().map(Value::Integer).collect() }
}

/// What a panic that was planned would write to the terminal is in the log as well.
fn silence_planned_panics() {
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let message = info.payload().downcast_ref::<String>();
        if message.is_none_or(|message| message != "planned") {
            others(info);
        }
    }));
}
