//! The PostgreSQL half, against a real server and through a proxy that can be broken on purpose.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

use std::time::{Duration, Instant};

use CloudValue::{Bool, Bytes, Float, Int, Null};
use tidewater_actors::core::failure::{CloudFailure, FailureClass};
use tidewater_actors::core::schema::{CloudTable, Table, parents_first};
use tidewater_actors::core::value::{CloudValue, Value};
use tidewater_actors::postgres::{
    Cloud, CloudHit, CloudOptions, CloudRefusal, CloudSession, ConflictRow, FeedEntry, FeedLimits, Ledger,
    LinkOptions, Op, Prepared, RoundFrame, RoundItem, RoundOutcome,
};
use tidewater_actors::sqlite::{Cursor, Store, StoreOptions, UpkeepOptions};
use tidewater_test_support::{Database, FaultProxy, Postgres, shop};
use tokio_postgres::Client;

// ---------------------------------------------------------------------------------------------------------
// The bench
// ---------------------------------------------------------------------------------------------------------

fn options(database: &Database, port: u16) -> CloudOptions {
    CloudOptions {
        host: "127.0.0.1".into(),
        port,
        database: database.name.clone(),
        user: database.user.clone(),
        password: Some(database.password.clone()),
        schema: "public".into(),
        timeout: Duration::from_secs(3),
        statement_timeout: Duration::from_secs(20),
        pool_max: 4,
        application_name: "tidewater-test".into(),
        add_columns: true,
        link: LinkOptions::default(),
    }
}

fn cloud(database: &Database) -> Cloud {
    Cloud::new(options(database, database.port)).unwrap()
}

/// A role of its own that may connect to the database.
async fn other_role(database: &Database) -> Database {
    let admin = database.connect_as_admin().await;
    let mut other = database.clone();
    other.user = format!("other_{}", uuid::Uuid::new_v4().simple());
    admin
        .batch_execute(&format!(
            "CREATE ROLE {} LOGIN PASSWORD '{}'; GRANT CONNECT ON DATABASE {} TO {0}",
            other.user, other.password, database.name
        ))
        .await
        .unwrap();
    other
}

/// The tracked tables of a SQLite file with this schema, parents first.
fn tracked(sql: &str) -> Vec<Table> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    let options = StoreOptions {
        path,
        busy_timeout: Duration::from_secs(1),
        read_pool_max: 1,
        upkeep: UpkeepOptions::default(),
    };
    let (mut store, _) = Store::open(&options).unwrap();
    store.track().unwrap();
    let (_, tables) = store.tables().unwrap();
    parents_first(&tables).into_iter().map(|at| tables[at].clone()).collect()
}

fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

fn text(text: &str) -> CloudValue {
    CloudValue::Text(text.into())
}

/// A device with a session, as the syncer keeps them.
struct Device {
    id: String,
    session: String,
    previous: Option<String>,
    cursor: Cursor,
    tables: Vec<(Table, CloudTable)>,
    notes: Vec<String>,
    conn: CloudSession,
}

/// A file in which nothing waits but the rounds.
#[derive(Debug)]
struct NothingWaits;

impl tidewater_actors::postgres::Waiting for NothingWaits {
    fn waits(
        &self,
        _: Vec<(i64, Vec<Value>)>,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<bool, CloudFailure>> + Send + '_>> {
        Box::pin(std::future::ready(Ok(false)))
    }
}

impl Device {
    async fn new(cloud: &Cloud, tables: &[Table]) -> Device {
        let conn = cloud.connect().await.unwrap();
        conn.bootstrap().await.unwrap();
        let (id, session) = (new_id(), new_id());
        let ledger = conn.settle(&id, &session, None).await.unwrap();
        let (prepared, notes) = conn.prepare(tables).await.unwrap();
        let tables = tables
            .iter()
            .zip(prepared)
            .map(|(table, prepared)| match prepared {
                Prepared::Ready(cloud_table) => (table.clone(), cloud_table),
                Prepared::NotYet(why) => panic!("{}: {why}", table.name),
            })
            .collect();
        let cursor = conn.register(&id, &session).await.unwrap();
        Device { id, session, previous: ledger.round, cursor, tables, notes, conn }
    }

    fn frame<'a>(&'a self, id: &'a str) -> RoundFrame<'a> {
        RoundFrame {
            device: &self.id,
            session: &self.session,
            id,
            previous: self.previous.as_deref(),
            cursor: &self.cursor,
            tables: &self.tables,
            waiting: &NothingWaits,
        }
    }

    fn item(&self, table: &str, op: Op, values: &[CloudValue]) -> RoundItem {
        let at = self.tables.iter().position(|(t, _)| t.name == table).unwrap();
        let key: Vec<CloudValue> = self.tables[at].0.key.iter().map(|c| values[*c].clone()).collect();
        RoundItem { table: at, key, values: values.to_vec(), op, seen: 0, stamp: 0 }
    }

    fn insert(&self, table: &str, values: &[CloudValue]) -> RoundItem {
        self.item(table, Op::Insert, values)
    }

    fn update(&self, table: &str, columns: &[&str], values: &[CloudValue]) -> RoundItem {
        let found = &self.tables.iter().find(|(t, _)| t.name == table).unwrap().0;
        let columns = columns.iter().map(|name| found.column(name).unwrap()).collect();
        self.item(table, Op::Update(columns), values)
    }

    fn delete(&self, table: &str, values: &[CloudValue]) -> RoundItem {
        self.item(table, Op::Delete, values)
    }

    async fn try_round(&mut self, items: &[RoundItem]) -> Result<RoundOutcome, CloudFailure> {
        let id = new_id();
        let outcome = self.conn.round(self.frame(&id), items, &[], false).await?;
        if matches!(outcome, RoundOutcome::Committed { .. }) {
            self.previous = Some(id);
        }
        Ok(outcome)
    }

    /// A round that is to commit.
    async fn round(&mut self, items: &[RoundItem]) -> Vec<CloudHit> {
        match self.try_round(items).await.unwrap() {
            RoundOutcome::Committed { hits, .. } => hits,
            other => panic!("not committed: {other:?}"),
        }
    }

    /// A round that is to be refused: by item, with the codes.
    async fn refused(&mut self, items: &[RoundItem]) -> Vec<(usize, String)> {
        match self.try_round(items).await.unwrap() {
            RoundOutcome::Refused { rows: refused, .. } => {
                let mut codes: Vec<_> =
                    refused.into_iter().map(|CloudRefusal { item, sqlstate, .. }| (item, sqlstate)).collect();
                codes.sort();
                codes
            }
            other => panic!("not refused: {other:?}"),
        }
    }

    async fn feed(&self) -> Vec<FeedEntry> {
        self.conn.feed_page(&self.cursor, 0, (100_000, 10), &self.id).await.unwrap().entries
    }

    /// The feed beyond the cursor: each key, and `own` for each entry of this device's; the cursor moves behind it.
    async fn pull(&mut self, plain: &Client) -> Vec<String> {
        committed(plain).await;
        let entries = self.feed().await;
        if let Some(last) = entries.last() {
            self.cursor = last.cursor.clone();
        }
        entries
            .into_iter()
            .flat_map(|entry| match (entry.own, entry.keys) {
                (true, _) => vec!["own".into()],
                (false, None) => vec!["whole table".into()],
                (false, Some(keys)) => keys.into_iter().map(|key| key.join("/")).collect(),
            })
            .collect()
    }

    async fn reconnect(&mut self, cloud: &Cloud) -> Ledger {
        self.conn = cloud.connect().await.unwrap();
        self.session = new_id();
        self.conn.settle(&self.id, &self.session, Some(&self.cursor)).await.unwrap()
    }
}

/// Other tests' transactions on the same server hold the horizon: waits until it is behind what has committed by now.
async fn committed(plain: &Client) {
    let xid = one(plain, "SELECT pg_current_xact_id()").await;
    let begun = Instant::now();
    while one(plain, &format!("SELECT pg_snapshot_xmin(pg_current_snapshot()) > '{xid}'::xid8")).await != "t"
    {
        assert!(begun.elapsed() < Duration::from_secs(10), "the horizon does not move");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A fresh database with its plain SQL connection, and one device that has prepared these tables.
async fn bench(sqlite: &str, postgres: &str) -> (Database, Client, Device) {
    let database = Postgres::shared().create_database().await;
    let plain = database.connect().await;
    plain.batch_execute(postgres).await.unwrap();
    let device = Device::new(&cloud(&database), &tracked(sqlite)).await;
    (database, plain, device)
}

/// The rows of a query as text, columns by `|`.
async fn rows(client: &Client, sql: &str) -> Vec<String> {
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    messages
        .into_iter()
        .filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|at| row.get(at).unwrap_or("NULL")).collect::<Vec<_>>().join("|"))
            }
            _ => None,
        })
        .collect()
}

async fn one(client: &Client, sql: &str) -> String {
    rows(client, sql).await.remove(0)
}

const ITEM: &str = "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, n INTEGER)";

// ---------------------------------------------------------------------------------------------------------
// Bootstrap
// ---------------------------------------------------------------------------------------------------------

/// Eight devices that come at once make one cloud with one identity, and coming again changes nothing.
#[tokio::test]
async fn many_bootstraps_at_once_make_one_identity() {
    let database = Postgres::shared().create_database().await;
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let cloud = cloud(&database);
            tokio::spawn(async move { cloud.connect().await.unwrap().bootstrap().await })
        })
        .collect();
    let mut found = vec![];
    for task in tasks {
        found.push(task.await.unwrap().unwrap());
    }
    found.push(cloud(&database).connect().await.unwrap().bootstrap().await.unwrap());
    found.dedup();
    assert_eq!(found.len(), 1);
    cloud(&database).check().await.unwrap();
}

/// A file that belongs to another cloud does not sync with this one, and the check says so as well.
#[tokio::test]
async fn another_identity_is_not_ours() {
    let database = Postgres::shared().create_database().await;
    let cloud = cloud(&database);
    cloud.connect().await.unwrap().bootstrap().await.unwrap();
    cloud.expect_identity(Some(new_id()));
    assert_eq!(cloud.connect().await.unwrap().bootstrap().await.unwrap_err().class, FailureClass::NotOurs);
    assert_eq!(cloud.check().await.unwrap_err().class, FailureClass::NotOurs);
}

/// Who may not create our schema, or may not use the one that another role made, is told which grant is missing,
/// and with that grant it goes on.
#[tokio::test]
async fn a_missing_right_names_its_grant() {
    let database = Postgres::shared().create_database().await;
    let role = other_role(&database).await;
    let failure = cloud(&role).connect().await.unwrap().bootstrap().await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Credentials);
    let remedy = failure.remedy.unwrap();
    assert!(remedy.contains("CREATE ON DATABASE"), "{remedy}");
    cloud(&database).connect().await.unwrap().bootstrap().await.unwrap();
    let failure = cloud(&role).check().await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Credentials);
    let remedy = failure.remedy.unwrap();
    assert!(remedy.contains("GRANT USAGE, CREATE ON SCHEMA tidewater"), "{remedy}");
    database.execute_batch(&remedy[remedy.find("GRANT").unwrap()..]).await;
    cloud(&role).check().await.unwrap();
    let session = cloud(&role).connect().await.unwrap();
    session.bootstrap().await.unwrap();
    session.settle(&new_id(), &new_id(), None).await.unwrap();
}

/// A role that only reads blocks, with a remedy.
#[tokio::test]
async fn a_read_only_role_blocks() {
    let database = Postgres::shared().create_database().await;
    let admin = database.connect_as_admin().await;
    admin
        .batch_execute(&format!("ALTER ROLE {} SET default_transaction_read_only = on", database.user))
        .await
        .unwrap();
    let failure = cloud(&database).connect().await.unwrap().bootstrap().await.unwrap_err();
    assert_eq!((failure.class, failure.sqlstate.as_deref()), (FailureClass::Credentials, Some("25006")));
    assert!(failure.remedy.is_some());
}

// ---------------------------------------------------------------------------------------------------------
// Preparing tables
// ---------------------------------------------------------------------------------------------------------

/// Everything of the catalogs that DDL would leave a trace in.
const CATALOG: &str = "SELECT string_agg(x, ' ' ORDER BY x) FROM (
    SELECT 'c' || oid || ':' || xmin AS x FROM pg_class WHERE relnamespace IN ('public'::regnamespace, 'tidewater'::regnamespace)
    UNION ALL SELECT 't' || oid || ':' || xmin FROM pg_trigger
    UNION ALL SELECT 'p' || oid || ':' || xmin FROM pg_proc WHERE oid > 16384
    UNION ALL SELECT 'k' || oid || ':' || xmin FROM pg_constraint WHERE oid > 16384) AS c(x)";

/// The shop's tables arrive with keys, unique constraints, foreign keys with their actions and defaults; a second
/// time nothing is touched.
#[tokio::test]
async fn the_shop_is_created_whole_and_only_once() {
    let (database, plain, device) = bench(shop::SCHEMA, "").await;
    assert_eq!(device.notes, Vec::<String>::new());
    let constraints = rows(
        &plain,
        "SELECT conrelid::regclass || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
         WHERE connamespace = 'public'::regnamespace ORDER BY 1",
    )
    .await;
    let has =
        |part: &str| assert!(constraints.iter().any(|c| c.contains(part)), "{part} in {constraints:#?}");
    has(
        "category FOREIGN KEY (parent_id) REFERENCES category(id) ON UPDATE CASCADE ON DELETE SET NULL DEFERRABLE",
    );
    has("category UNIQUE (parent_id, name) DEFERRABLE");
    has("customer UNIQUE (email) DEFERRABLE");
    has(
        "returned FOREIGN KEY (order_id, line) REFERENCES order_line(order_id, line) ON UPDATE CASCADE ON DELETE CASCADE",
    );
    has("order_line FOREIGN KEY (sku) REFERENCES product(sku) ON UPDATE CASCADE ON DELETE RESTRICT");
    has("stock_place PRIMARY KEY (warehouse, sku)");
    assert_eq!(constraints.iter().filter(|c| c.contains("FOREIGN KEY")).count(), 11, "{constraints:#?}");
    let default = one(&plain, "SELECT column_default FROM information_schema.columns WHERE table_name = 'product' AND column_name = 'active'").await;
    assert_eq!(default, "true");
    let before = one(&plain, CATALOG).await;
    let again = Device::new(&cloud(&database), &tracked(shop::SCHEMA)).await;
    assert_eq!(again.tables, device.tables);
    assert_eq!(one(&plain, CATALOG).await, before);
}

/// Devices that prepare the same schema at once neither fail nor create anything twice, cycles included.
#[tokio::test]
async fn preparing_at_once_creates_nothing_twice() {
    let database = Postgres::shared().create_database().await;
    let schema = "CREATE TABLE Hen (id INTEGER PRIMARY KEY, egg INTEGER REFERENCES EGG (ID));
                  CREATE TABLE Egg (id INTEGER PRIMARY KEY, hen INTEGER REFERENCES HEN (ID), code TEXT UNIQUE,
                                    a INTEGER, b INTEGER, UNIQUE (a, b));
                  CREATE TABLE chick (id INTEGER PRIMARY KEY, code TEXT REFERENCES egg (code) ON DELETE CASCADE,
                                      x INTEGER, y INTEGER, FOREIGN KEY (y, x) REFERENCES egg (b, a))";
    let tables = tracked(schema);
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let (cloud, tables) = (cloud(&database), tables.clone());
            tokio::spawn(async move { Device::new(&cloud, &tables).await.notes })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), Vec::<String>::new());
    }
    let plain = database.connect().await;
    assert_eq!(
        one(
            &plain,
            "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND connamespace = 'public'::regnamespace"
        )
        .await,
        "4"
    );
    assert_eq!(one(&plain, "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'tidewater%'").await, "12");
}

/// Tables that are there already are taken as they are, whatever their types, and their values cross unchanged.
#[tokio::test]
async fn existing_tables_are_taken_as_they_are() {
    let sqlite = "CREATE TABLE thing (id INTEGER PRIMARY KEY, small INTEGER, short VARCHAR(10), price NUMERIC, at TEXT,
                                      doc TEXT, mood TEXT, code TEXT, fixed TEXT, half REAL)";
    let postgres = "CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE DOMAIN code AS text CHECK (VALUE ~ '^[a-z]+$');
        CREATE TABLE thing (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, small int4, short varchar(10), price numeric(10,2),
            at timestamptz, doc jsonb, mood mood, code code, fixed char(4), half real, more text, twice int GENERATED ALWAYS AS (small * 2) STORED)";
    let (_database, plain, mut device) = bench(sqlite, postgres).await;
    let row = [
        Int(7),
        Int(3),
        text("short"),
        text("12.5"),
        text("2024-02-29 23:59:59.25+00"),
        text("{\"a\": 1}"),
        text("sad"),
        text("abc"),
        text("ab"),
        Float(0.5),
    ];
    let item = device.insert("thing", &row);
    assert_eq!(device.round(&[item]).await, []);
    assert_eq!(
        one(&plain, "SELECT * FROM thing").await,
        "7|3|short|12.50|2024-02-29 23:59:59.25+00|{\"a\": 1}|sad|abc|ab  |0.5|NULL|6"
    );
    let (table, cloud_table) = &device.tables[0];
    let fetched = device.conn.fetch(table, cloud_table, &[0], &[vec!["7".into()]]).await.unwrap();
    let mut expected = row.to_vec();
    expected[3] = text("12.50");
    assert_eq!(fetched, vec![(0, expected)]);
    assert_eq!(device.pull(&plain).await, ["own"], "nothing was stored other than sent");
    // A long text, an unknown word, a number too large: each its own row's trouble.
    let mut long = row.clone();
    (long[0], long[2]) = (Int(8), text("much too long for ten"));
    let mut unknown = row.clone();
    (unknown[0], unknown[6]) = (Int(9), text("bored"));
    let mut domain = row.clone();
    (domain[0], domain[7]) = (Int(10), text("ABC"));
    let mut good = row.clone();
    good[0] = Int(11);
    let items: Vec<_> = [long, unknown, domain, good].iter().map(|row| device.insert("thing", row)).collect();
    assert_eq!(device.refused(&items).await, [(0, "22001".into()), (1, "22P02".into()), (2, "23514".into())]);
    assert_eq!(device.round(&items[3..]).await, []);
    assert_eq!(rows(&plain, "SELECT id FROM thing ORDER BY 1").await, ["7", "11"]);
}

async fn prepared(database: &Database, add_columns: bool, sqlite: &str) -> (Prepared, Vec<String>) {
    let cloud = Cloud::new(CloudOptions { add_columns, ..options(database, database.port) }).unwrap();
    let session = cloud.connect().await.unwrap();
    session.bootstrap().await.unwrap();
    let (mut prepared, notes) = session.prepare(&tracked(sqlite)).await.unwrap();
    (prepared.remove(0), notes)
}

/// What cannot be synced is said in words and changes nothing: a missing column that may not be added, another key,
/// a column that demands a value, a generated one, a view by the same name.
#[tokio::test]
async fn what_does_not_fit_is_reported() {
    for (postgres, expected) in [
        ("CREATE TABLE item (id int8 PRIMARY KEY, name text)", "lacks the column n"),
        ("CREATE TABLE item (id int8, name text, n int8 PRIMARY KEY)", "another primary key (n)"),
        ("CREATE TABLE item (id int8 PRIMARY KEY DEFERRABLE, name text, n int8)", "another primary key ()"),
        ("CREATE TABLE item (id int8, name text, n int8)", "another primary key ()"),
        (
            "CREATE TABLE item (id int8 PRIMARY KEY, name text, n int8, owner text NOT NULL)",
            "demands a value for owner",
        ),
        (
            "CREATE TABLE item (id int8 GENERATED ALWAYS AS (1) STORED PRIMARY KEY, name text, n int8)",
            "is generated",
        ),
        ("CREATE VIEW item AS SELECT 1::int8 AS id, ''::text AS name, 1 AS n", "already exists"),
    ] {
        let database = Postgres::shared().create_database().await;
        database.execute_batch(postgres).await;
        match prepared(&database, false, ITEM).await {
            (Prepared::NotYet(why), _) => assert!(why.contains(expected), "{postgres}: {why}"),
            (ready, _) => panic!("{postgres}: {ready:?}"),
        }
    }
}

/// A missing column is added where that is allowed, without demanding a value of the rows that are there.
#[tokio::test]
async fn a_missing_column_is_added() {
    let database = Postgres::shared().create_database().await;
    let plain = database.connect().await;
    plain
        .batch_execute("CREATE TABLE item (id int8 PRIMARY KEY); INSERT INTO item VALUES (1)")
        .await
        .unwrap();
    let sqlite = "CREATE TABLE item (id INTEGER PRIMARY KEY, n INTEGER NOT NULL DEFAULT 5, note TEXT NOT NULL DEFAULT ' NOT NULL')";
    let (ready, _) = prepared(&database, true, sqlite).await;
    assert!(matches!(ready, Prepared::Ready(_)), "{ready:?}");
    assert_eq!(rows(&plain, "SELECT * FROM item").await, ["1|5| NOT NULL"]);
}

/// A table of another owner is pushed to, and it is said why nothing is pulled; a covered one is pulled by every
/// role.
#[tokio::test]
async fn a_table_of_another_owner_is_pushed_only() {
    let database = Postgres::shared().create_database().await;
    let role = other_role(&database).await;
    cloud(&database).connect().await.unwrap().bootstrap().await.unwrap();
    let plain = database.connect().await;
    plain
        .batch_execute(&format!(
            "CREATE TABLE item (id int8 PRIMARY KEY, name text, n int8);
             GRANT SELECT, INSERT, UPDATE, DELETE ON item TO {0}; GRANT USAGE, CREATE ON SCHEMA tidewater TO {0};
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA tidewater TO {0}",
            role.user
        ))
        .await
        .unwrap();
    let mut device = Device::new(&cloud(&role), &tracked(ITEM)).await;
    assert!(!device.tables[0].1.feed && device.notes.len() == 1, "{:?}", device.notes);
    let item = device.insert("item", &[Int(1), text("one"), Null]);
    assert_eq!(device.round(&[item]).await, []);
    assert_eq!(rows(&plain, "SELECT * FROM item").await, ["1|one|NULL"]);
    // The owner's device covers it; from then on the other role sees the feed too.
    Device::new(&cloud(&database), &tracked(ITEM)).await;
    let mut device = Device::new(&cloud(&role), &tracked(ITEM)).await;
    assert!(device.tables[0].1.feed, "{:?}", device.notes);
    plain.batch_execute("INSERT INTO item VALUES (2)").await.unwrap();
    assert_eq!(device.pull(&plain).await, ["2"]);
}

/// A partitioned table works, and writes straight into a partition, a move between partitions and a partition that
/// comes later are seen.
#[tokio::test]
async fn partitions_are_covered() {
    let sqlite = "CREATE TABLE log (id INTEGER, place INTEGER, note TEXT, PRIMARY KEY (id, place))";
    let postgres = "CREATE TABLE log (id int8, place int8, note text, PRIMARY KEY (id, place)) PARTITION BY LIST (place);
                    CREATE TABLE log_1 PARTITION OF log FOR VALUES IN (1); CREATE TABLE log_2 PARTITION OF log FOR VALUES IN (2)";
    let (database, plain, mut device) = bench(sqlite, postgres).await;
    let items = [
        device.insert("log", &[Int(1), Int(1), text("a")]),
        device.insert("log", &[Int(2), Int(2), text("b")]),
    ];
    assert_eq!(device.round(&items).await, []);
    let items = [
        device.update("log", &["note"], &[Int(1), Int(1), text("c")]),
        device.delete("log", &[Int(2), Int(2), Null]),
    ];
    assert_eq!(device.round(&items).await, []);
    assert_eq!(device.pull(&plain).await, ["own"; 3]);
    plain.batch_execute("INSERT INTO log_2 VALUES (5, 2)").await.unwrap();
    assert_eq!(device.pull(&plain).await, ["5/2"]);
    plain.batch_execute("UPDATE log SET place = 2 WHERE id = 1").await.unwrap();
    let mut moved = device.pull(&plain).await;
    moved.sort();
    assert_eq!(moved, ["1/1", "1/2"]);
    plain.batch_execute("CREATE TABLE log_3 PARTITION OF log FOR VALUES IN (3)").await.unwrap();
    let mut device = Device::new(&cloud(&database), &tracked(sqlite)).await;
    plain.batch_execute("INSERT INTO log_3 VALUES (6, 3); TRUNCATE log_3").await.unwrap();
    assert_eq!(device.pull(&plain).await, ["6/3", "whole table"]);
    assert!(device.feed().await.is_empty());
    plain.batch_execute("INSERT INTO log VALUES (7, 3)").await.unwrap();
    committed(&plain).await;
    assert_eq!(device.feed().await[0].table_oid, device.tables[0].1.oid);
}

// ---------------------------------------------------------------------------------------------------------
// Settling and the fence
// ---------------------------------------------------------------------------------------------------------

/// An unknown device is registered; a new session shuts out what an older one still wants to do.
#[tokio::test]
async fn a_new_session_shuts_out_the_older_one() {
    let (database, plain, mut device) = bench(ITEM, "").await;
    let ledger = device.conn.settle(&new_id(), &new_id(), None).await.unwrap();
    assert_eq!(ledger, Ledger { round: None, number: 0, left_out: vec![] });
    let item = device.insert("item", &[Int(1), text("one"), Null]);
    device.round(&[item]).await;
    let settled =
        cloud(&database).connect().await.unwrap().settle(&device.id, &new_id(), None).await.unwrap();
    assert_eq!((settled.round, settled.number), (device.previous.clone(), 1));
    let item = device.insert("item", &[Int(2), text("two"), Null]);
    let failure = device.try_round(&[item]).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Transient);
    assert_eq!(rows(&plain, "SELECT id FROM item").await, ["1"]);
}

/// An older session's transaction that does not go on is ended by the next one; another device's is let be.
#[tokio::test]
async fn an_older_session_that_does_not_go_on_is_ended() {
    let (database, plain, device) = bench(ITEM, "").await;
    let neighbour = new_id();
    device.conn.settle(&neighbour, &new_id(), None).await.unwrap();
    let (older, other) = (database.connect().await, database.connect().await);
    for (client, device, item) in [(&older, &device.id, 1), (&other, &neighbour, 2)] {
        let begun = format!(
            "BEGIN; UPDATE tidewater.devices SET round = gen_random_uuid() WHERE id = '{device}'; \
             INSERT INTO item (id) VALUES ({item})"
        );
        client.batch_execute(&begun).await.unwrap();
    }
    let ledger = cloud(&database).connect().await.unwrap().settle(&device.id, &new_id(), None).await.unwrap();
    assert_eq!(ledger, Ledger { round: None, number: 0, left_out: vec![] });
    assert!(older.batch_execute("COMMIT").await.is_err());
    other.batch_execute("COMMIT").await.unwrap();
    assert_eq!(rows(&plain, "SELECT id FROM item").await, ["2"]);
}

/// Of two rounds after the same one, whatever they carry, exactly one takes effect.
#[tokio::test]
async fn two_rounds_after_the_same_one_are_one() {
    let (database, plain, mut device) = bench(ITEM, "").await;
    let first = device.insert("item", &[Int(1), text("one"), Null]);
    device.round(&[first]).await;
    let items: Vec<_> = (2..4).map(|id| vec![device.insert("item", &[Int(id), Null, Null])]).collect();
    let second = cloud(&database).connect().await.unwrap();
    let (id_1, id_2) = (new_id(), new_id());
    let (one_ended, two_ended) = tokio::join!(
        device.conn.round(device.frame(&id_1), &items[0], &[], false),
        second.round(device.frame(&id_2), &items[1], &[], false)
    );
    assert_eq!(
        usize::from(one_ended.is_ok()) + usize::from(two_ended.is_ok()),
        1,
        "{one_ended:?} {two_ended:?}"
    );
    assert_eq!(one(&plain, "SELECT count(*) FROM item").await, "2");
}

// ---------------------------------------------------------------------------------------------------------
// Rounds
// ---------------------------------------------------------------------------------------------------------

/// Every way of crossing the wire, with the extremes of each, arrives as sent and comes back as it was.
#[tokio::test]
async fn every_wire_type_crosses_unchanged() {
    let sqlite = "CREATE TABLE w (id INTEGER PRIMARY KEY, i INTEGER, r REAL, t TEXT, b BLOB, f BOOLEAN, m NUMERIC(20,4), x NUMERIC,
                  d DATE, ts DATETIME, j JSON, u UUID)";
    let (_database, plain, mut device) = bench(sqlite, "").await;
    let full = |id: i64, i, r, t: &str, b: &[u8], f, m: &str, x: &str| {
        vec![
            Int(id),
            Int(i),
            Float(r),
            text(t),
            Bytes(b.to_vec()),
            Bool(f),
            text(m),
            text(x),
            text("0001-01-01"),
            text("9999-12-31 23:59:59.999999"),
            text("{ \"b\":1,\"a\" : [2.50] }"),
            text("6f2c1c2e-3c4b-4f7e-9d35-0242ac120002"),
        ]
    };
    let mut expected = vec![
        vec![Int(1), Null, Null, Null, Null, Null, Null, Null, Null, Null, Null, Null],
        full(2, i64::MIN, f64::INFINITY, "", &[], true, "-9999999999999999.9999", "1e300"),
        full(
            3,
            i64::MAX,
            f64::NEG_INFINITY,
            "'\\x\u{1F980}\u{7}\n\t\"$1",
            &[0, 255, 92],
            false,
            "0.0001",
            "0.1",
        ),
        full(4, 0, 5e-324, "NULL", b"\\x00", false, "7.0000", "-123456789012345678901234567890"),
        full(5, 1, 1.797_693_134_862_315_7e308, "{}", &vec![7; 300_000], true, "1.5000", "2"),
    ];
    let items: Vec<_> = expected.iter().map(|row| device.insert("w", row)).collect();
    assert_eq!(device.round(&items).await, []);
    assert!(device.pull(&plain).await.iter().all(|entry| entry == "own"));
    expected[1][7] = text(&format!("1{}", "0".repeat(300)));
    let (table, cloud_table) = &device.tables[0];
    let found = page(&device.conn, table, cloud_table, None, 10).await;
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    // The same through updates, row by row to other values.
    let columns = ["i", "r", "t", "b", "f", "m", "x", "d", "ts", "j", "u"];
    expected[1..].rotate_left(1);
    for (at, row) in expected.iter_mut().enumerate() {
        row[0] = Int(at as i64 + 1);
    }
    let items: Vec<_> = expected.iter().map(|row| device.update("w", &columns, row)).collect();
    assert_eq!(device.round(&items).await, []);
    let (table, cloud_table) = &device.tables[0];
    let found = page(&device.conn, table, cloud_table, None, 10).await;
    assert_eq!(found, expected);
    let items: Vec<_> = expected.iter().map(|row| device.delete("w", row)).collect();
    assert_eq!(device.round(&items).await, []);
    assert_eq!(device.round(&[]).await, [], "an empty round");
}

/// Only what is dirty is overwritten: other columns keep what plain SQL wrote, and a row that plain SQL touched
/// since the cursor leaves the round with the cloud's row, until it has been seen.
#[tokio::test]
async fn what_others_changed_leaves_the_round_until_it_was_seen() {
    let (_database, plain, mut device) = bench(ITEM, "").await;
    let items: Vec<_> = (1..=3).map(|id| device.insert("item", &[Int(id), text("a"), Int(0)])).collect();
    device.round(&items).await;
    plain.batch_execute("UPDATE item SET n = 9 WHERE id = 1; DELETE FROM item WHERE id = 2; INSERT INTO item VALUES (4, 'theirs', 4)").await.unwrap();
    let items = [
        device.update("item", &["name"], &[Int(1), text("b"), Int(0)]),
        device.update("item", &["name"], &[Int(2), text("b"), Int(0)]),
        device.update("item", &["name"], &[Int(3), text("b"), Int(0)]),
        device.insert("item", &[Int(4), text("ours"), Null]),
        device.insert("item", &[Int(5), text("new"), Null]),
    ];
    let hits = device.round(&items).await;
    let found: Vec<_> = hits.iter().map(|hit| (hit.item, hit.row.clone())).collect();
    assert_eq!(
        found,
        [
            (0, Some(vec![Int(1), text("a"), Int(9)])),
            (1, None),
            (3, Some(vec![Int(4), text("theirs"), Int(4)])),
        ]
    );
    assert!(hits.iter().all(|hit| hit.seen > 0), "{hits:?}");
    assert_eq!(
        rows(&plain, "SELECT * FROM item ORDER BY 1").await,
        ["1|a|9", "3|b|0", "4|theirs|4", "5|new|NULL"]
    );
    // What left is in the ledger.
    let mut left =
        device.conn.settle(&device.id, &device.session, Some(&device.cursor)).await.unwrap().left_out;
    left.sort();
    let mut names: Vec<_> =
        hits.iter().map(|hit| items[hit.item].name(&device.tables[items[hit.item].table])).collect();
    names.sort();
    assert_eq!(left, names);
    // Seen, it passes, and the other column survives; unless it was touched again.
    let mut seen = items[0].clone();
    seen.seen = hits[0].seen;
    assert_eq!(device.round(&[seen.clone()]).await, []);
    assert_eq!(one(&plain, "SELECT * FROM item WHERE id = 1").await, "1|b|9");
    assert!(
        device
            .conn
            .settle(&device.id, &device.session, Some(&device.cursor))
            .await
            .unwrap()
            .left_out
            .is_empty()
    );
    plain.batch_execute("UPDATE item SET n = 10 WHERE id = 1").await.unwrap();
    assert_eq!(device.round(&[seen]).await.len(), 1);
    // A truncated table is a change of every row.
    plain.batch_execute("TRUNCATE item; INSERT INTO item VALUES (3, 'again', 1)").await.unwrap();
    let item = device.delete("item", &[Int(3), Null, Null]);
    assert_eq!(device.round(&[item]).await[0].row, Some(vec![Int(3), text("again"), Int(1)]));
}

/// A transaction of another database and a prepared one hold the feed's horizon back; a round that meets a change
/// behind it ends with the row all the same, and passes once it was seen.
#[tokio::test]
async fn a_held_horizon_does_not_hold_rounds() {
    let (database, plain, mut device) = bench(ITEM, "").await;
    let items = [device.insert("item", &[Int(1), text("a"), Int(0)])];
    device.round(&items).await;
    let elsewhere = Postgres::shared().create_database().await.connect().await;
    elsewhere.batch_execute("BEGIN; CREATE TABLE held (a int)").await.unwrap();
    let other = database.connect().await;
    let name = new_id();
    other
        .batch_execute(&format!("BEGIN; CREATE TABLE held (a int); PREPARE TRANSACTION '{name}'"))
        .await
        .unwrap();
    plain.batch_execute("UPDATE item SET n = 1").await.unwrap();
    assert!(device.feed().await.iter().all(|entry| entry.keys.is_none()), "the horizon is held");
    let mut item = device.update("item", &["name"], &[Int(1), text("b"), Int(0)]);
    let hits = device.round(&[item.clone()]).await;
    assert_eq!(hits[0].row, Some(vec![Int(1), text("a"), Int(1)]));
    item.seen = hits[0].seen;
    assert_eq!(device.round(&[item]).await, []);
    other.batch_execute(&format!("ROLLBACK PREPARED '{name}'")).await.unwrap();
    elsewhere.batch_execute("ROLLBACK").await.unwrap();
}

/// A key with a scale is compared with the feed as the feed names it.
#[tokio::test]
async fn a_numeric_key_meets_its_feed_entries() {
    let sqlite = "CREATE TABLE p (price NUMERIC(10,2) PRIMARY KEY NOT NULL, note TEXT)";
    let (_database, plain, mut device) = bench(sqlite, "").await;
    let items = [device.insert("p", &[text("1.5"), text("a")])];
    device.round(&items).await;
    plain.batch_execute("UPDATE p SET note = 'theirs'").await.unwrap();
    let item = device.update("p", &["note"], &[text("1.5"), text("ours")]);
    assert_eq!(device.round(&[item]).await.len(), 1);
}

/// Rows of a transaction that has not ended are waited for: after its commit they are the cloud's, after its
/// rollback they never were. Also where the database makes transactions serializable that do not say otherwise.
#[tokio::test]
async fn rows_of_open_transactions_are_waited_for() {
    let (database, plain, mut device) = bench(ITEM, "").await;
    let admin = database.connect_as_admin().await;
    let stricter = format!("ALTER ROLE {} SET default_transaction_isolation = 'serializable'", database.user);
    admin.batch_execute(&stricter).await.unwrap();
    device.reconnect(&cloud(&database)).await;
    for (id, end, hit) in [(1, "COMMIT", true), (2, "ROLLBACK", false)] {
        let other = database.connect().await;
        other.batch_execute(&format!("BEGIN; INSERT INTO item VALUES ({id}, 'theirs')")).await.unwrap();
        let items = [device.insert("item", &[Int(id), text("ours"), Null])];
        let end = async {
            wait_for_lock(&plain).await;
            other.batch_execute(end).await.unwrap();
        };
        let (hits, ()) = tokio::join!(device.round(&items), end);
        assert_eq!(hits.len(), usize::from(hit), "{hits:?}");
        if hit {
            assert_eq!(hits[0].row, Some(vec![Int(1), text("theirs"), Null]));
        }
    }
    // A row that is being changed, and one that is being deleted.
    let other = database.connect().await;
    other
        .batch_execute("BEGIN; UPDATE item SET n = 7 WHERE id = 1; DELETE FROM item WHERE id = 2")
        .await
        .unwrap();
    let items = [
        device.update("item", &["name"], &[Int(1), text("b"), Null]),
        device.update("item", &["name"], &[Int(2), text("b"), Null]),
    ];
    let end = async {
        wait_for_lock(&plain).await;
        other.batch_execute("COMMIT").await.unwrap();
    };
    let (hits, ()) = tokio::join!(device.round(&items), end);
    let found: Vec<_> = hits.into_iter().map(|hit| (hit.item, hit.row)).collect();
    assert_eq!(found, [(0, Some(vec![Int(1), text("theirs"), Int(7)])), (1, None)]);
}

async fn wait_for_lock(plain: &Client) {
    let begun = Instant::now();
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while one(plain, sql).await == "0" {
        assert!(begun.elapsed() < Duration::from_secs(5), "nobody waits");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A deadlock is nobody's bad data: whoever loses it tries again and gets through.
#[tokio::test]
async fn a_deadlock_is_transient() {
    let (database, plain, mut device) = bench(ITEM, "").await;
    // Who looks for the deadlock loses it: ours looks after a second, when the other one waits as well.
    let items: Vec<_> = (1..=2).map(|id| device.insert("item", &[Int(id), text("a"), Int(0)])).collect();
    device.round(&items).await;
    device.pull(&plain).await;
    let other = database.connect_as_admin().await;
    other
        .batch_execute("SET deadlock_timeout = '60s'; BEGIN; UPDATE item SET n = 1 WHERE id = 2")
        .await
        .unwrap();
    let items: Vec<_> =
        (1..=2).map(|id| device.update("item", &["name"], &[Int(id), text("b"), Int(0)])).collect();
    let theirs = async {
        wait_for_lock(&plain).await;
        other.batch_execute("UPDATE item SET n = 1 WHERE id = 1; ROLLBACK").await
    };
    let (ours, theirs) = tokio::join!(device.try_round(&items), theirs);
    theirs.unwrap();
    assert_eq!(ours.unwrap_err().class, FailureClass::Transient);
    device.reconnect(&cloud(&database)).await;
    assert_eq!(device.round(&items).await, []);
}

/// Unique values change places within one round, parents come with their children in any order, a value freed by
/// a deleted row is taken by a new one, and what goes, goes children first.
#[tokio::test]
async fn rows_of_one_round_may_need_each_other() {
    let sqlite = "CREATE TABLE node (id INTEGER PRIMARY KEY, up INTEGER REFERENCES node (id), code TEXT UNIQUE, tag TEXT UNIQUE);
                  CREATE TABLE leaf (id INTEGER PRIMARY KEY, node INTEGER NOT NULL REFERENCES node (id) ON DELETE RESTRICT,
                                     tag TEXT REFERENCES node (tag))";
    let (_database, plain, mut device) = bench(sqlite, "").await;
    let items = [
        device.insert("leaf", &[Int(1), Int(9), text("y")]),
        device.insert("node", &[Int(1), Int(9), text("a"), text("x")]),
        device.insert("node", &[Int(9), Null, text("b"), text("y")]),
    ];
    assert_eq!(device.round(&items).await, []);
    let items = [
        device.update("node", &["code"], &[Int(1), Null, text("b"), Null]),
        device.update("node", &["code"], &[Int(9), Null, text("a"), Null]),
    ];
    assert_eq!(device.round(&items).await, []);
    assert_eq!(rows(&plain, "SELECT id, code FROM node ORDER BY 1").await, ["1|b", "9|a"]);
    // The tag's constraint is referenced and so not deferrable.
    let items = [
        device.insert("node", &[Int(2), Int(9), text("b"), text("x")]),
        device.delete("node", &[Int(1), Null, Null, Null]),
    ];
    assert_eq!(device.round(&items).await, []);
    assert_eq!(rows(&plain, "SELECT id, code, tag FROM node ORDER BY 1").await, ["2|b|x", "9|a|y"]);
    let items = [
        device.delete("node", &[Int(9), Null, Null, Null]),
        device.delete("node", &[Int(2), Null, Null, Null]),
        device.delete("leaf", &[Int(1), Null, Null]),
    ];
    assert_eq!(device.round(&items).await, []);
    assert_eq!(one(&plain, "SELECT count(*) FROM node").await, "0");
}

/// Exactly the guilty rows are named, whatever PostgreSQL has against them; nothing of the round took effect, and
/// the rest gets through afterwards under the same session.
#[tokio::test]
async fn exactly_the_guilty_rows_are_refused() {
    let sqlite = "CREATE TABLE owner (id INTEGER PRIMARY KEY);
                  CREATE TABLE t (id INTEGER PRIMARY KEY, owner INTEGER REFERENCES owner (id), v TEXT, u TEXT UNIQUE, n INTEGER, d DATE)";
    let postgres = "CREATE TABLE owner (id int8 PRIMARY KEY);
        CREATE TABLE t (id int8 PRIMARY KEY, owner int8 REFERENCES owner (id), v varchar(2000) NOT NULL, u text UNIQUE DEFERRABLE, n int8 CHECK (n > 0), d date);
        CREATE INDEX ON t ((repeat(v, n::int)));
        ALTER TABLE t ENABLE ROW LEVEL SECURITY; ALTER TABLE t FORCE ROW LEVEL SECURITY;
        CREATE POLICY p ON t USING (true) WITH CHECK (v IS DISTINCT FROM 'hidden');
        CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF TG_OP = 'DELETE' THEN IF old.v = 'stays' THEN RETURN NULL; END IF; RETURN old; END IF;
            IF new.v = 'raise' THEN RAISE 'no'; END IF;
            IF new.v = 'drop' THEN RETURN NULL; END IF; RETURN new; END $$;
        CREATE TRIGGER judge BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION judge();
        INSERT INTO t VALUES (1000, NULL, 'x', 'taken', 1, NULL), (1001, NULL, 'stays', NULL, 1, NULL), (1002, NULL, 'x', NULL, 1, NULL)";
    let (_database, plain, mut device) = bench(sqlite, postgres).await;
    let random: String = (0..20_000).map(|_| fastrand::char('a'..='z')).collect();
    let bad: Vec<(&str, Vec<CloudValue>)> = vec![
        ("23514", vec![Null, text("x"), Null, Int(0), Null]),
        ("23502", vec![Null, Null, Null, Int(1), Null]),
        ("23503", vec![Int(77), text("x"), Null, Int(1), Null]),
        ("23505", vec![Null, text("x"), text("taken"), Int(1), Null]),
        ("42501", vec![Null, text("hidden"), Null, Int(1), Null]),
        ("P0001", vec![Null, text("raise"), Null, Int(1), Null]),
        ("02000", vec![Null, text("drop"), Null, Int(1), Null]),
        ("22001", vec![Null, text(&"x".repeat(2001)), Null, Int(1), Null]),
        ("54000", vec![Null, text("x"), text(&random), Int(1), Null]),
        ("22008", vec![Null, text("x"), Null, Int(1), text("2023-02-29")]),
    ];
    // Among them: a pair that needs each other, and a child before its parent.
    let mut items = vec![];
    let mut expected = vec![];
    for (at, (code, values)) in bad.iter().enumerate() {
        let id = Int(at as i64 * 10);
        items.push(
            device.insert("t", &[id.clone(), Int(5), text("good"), text(&format!("u{at}")), Int(1), Null]),
        );
        expected.push((items.len(), (*code).to_owned()));
        items.push(device.insert("t", &[vec![Int(at as i64 * 10 + 1)], values.clone()].concat()));
    }
    items.push(device.insert("owner", &[Int(5)]));
    for code in ["P0001", "02000"] {
        expected.push((items.len(), code.into()));
        let word = if code == "P0001" { "raise" } else { "drop" };
        items.push(device.update(
            "t",
            &["v"],
            &[Int(if code == "P0001" { 1000 } else { 1002 }), Null, text(word), Null, Null, Null],
        ));
    }
    expected.push((items.len(), "02000".into()));
    items.push(device.delete("t", &[Int(1001), Null, Null, Null, Null, Null]));
    assert_eq!(device.refused(&items).await, expected);
    assert_eq!(one(&plain, "SELECT count(*) FROM t").await, "3");
    let good: Vec<_> = (0..items.len())
        .filter(|at| !expected.iter().any(|(bad, _)| bad == at))
        .map(|at| items[at].clone())
        .collect();
    assert_eq!(device.round(&good).await, []);
    assert_eq!(one(&plain, "SELECT count(*) FROM t WHERE v = 'good'").await, "10");
}

/// Where very many rows are refused, some are named at a time, so that no transaction takes for ever; the rest has its
/// turn in the rounds that follow, and the good ones get through.
#[tokio::test]
async fn very_many_guilty_rows_come_in_portions() {
    let postgres = "CREATE TABLE item (id int8 PRIMARY KEY, name text, n int8 CHECK (n > 0))";
    let (_database, plain, mut device) = bench(ITEM, postgres).await;
    let mut items: Vec<_> =
        (0..600).map(|id| device.insert("item", &[Int(id), Null, Int(i64::from(id % 2 == 0))])).collect();
    let mut rounds = 0;
    loop {
        rounds += 1;
        match device.try_round(&items).await.unwrap() {
            RoundOutcome::Committed { .. } => break,
            other @ (RoundOutcome::TakesAlong | RoundOutcome::TooNarrow | RoundOutcome::TooSlow(_)) => {
                panic!("{other:?}")
            }
            RoundOutcome::Refused { rows: refused, .. } => {
                assert!(refused.iter().all(|refusal| items[refusal.item].values[2] == Int(0)));
                let guilty: Vec<usize> = refused.iter().map(|refusal| refusal.item).collect();
                let mut at = 0..;
                items.retain(|_| !guilty.contains(&at.next().unwrap()));
            }
        }
    }
    assert!((3..10).contains(&rounds), "{rounds}");
    assert_eq!(one(&plain, "SELECT count(*) FROM item").await, "300");
}

/// A pair that swaps a unique value is not blamed for a third row that can have none.
#[tokio::test]
async fn a_swap_is_not_blamed_for_its_neighbour() {
    let sqlite = "CREATE TABLE s (id INTEGER PRIMARY KEY, u TEXT UNIQUE)";
    let (_database, plain, mut device) = bench(sqlite, "").await;
    let items: Vec<_> = [(1, "a"), (2, "b"), (3, "c"), (4, "d")]
        .map(|(id, u)| device.insert("s", &[Int(id), text(u)]))
        .into();
    device.round(&items).await;
    let items: Vec<_> =
        [(1, "b"), (2, "a"), (3, "d")].map(|(id, u)| device.update("s", &["u"], &[Int(id), text(u)])).into();
    assert_eq!(device.refused(&items).await, [(2, "23505".into())]);
    assert_eq!(device.round(&items[..2]).await, []);
    assert_eq!(rows(&plain, "SELECT u FROM s ORDER BY id").await, ["b", "a", "c", "d"]);
}

/// Values that change places in circles of three, five and a hundred rows, on a composite key of values as well, beside rows
/// that are refused for a unique value: none of the circles is blamed, wherever the guilty ones stand.
#[tokio::test]
async fn circles_are_not_blamed_for_their_neighbours() {
    let sqlite = "CREATE TABLE s (id INTEGER PRIMARY KEY, u TEXT, v INTEGER, UNIQUE (u, v))";
    let (_database, plain, mut device) = bench(sqlite, "").await;
    let u = |id: i64| text(&format!("u{}", id % 7));
    let items: Vec<_> = (0..120).map(|id| device.insert("s", &[Int(id), u(id), Int(id / 7)])).collect();
    device.round(&items).await;
    let mut items = vec![];
    for (first, length) in [(1, 3), (5, 5), (12, 100)] {
        for at in 0..length {
            let to = first + (at + 1) % length;
            items.push(device.update("s", &["u", "v"], &[Int(first + at), u(to), Int(to / 7)]));
        }
    }
    // Each takes what row 0 keeps, or what the row that stays behind for that keeps.
    let guilty: Vec<usize> = vec![0, 50, items.len() + 2];
    for (at, (id, to)) in guilty.iter().zip([(115, 0), (116, 115), (117, 116)]) {
        items.insert(*at, device.update("s", &["u", "v"], &[Int(id), u(to), Int(to / 7)]));
    }
    let expected: Vec<_> = guilty.iter().map(|at| (*at, "23505".to_owned())).collect();
    assert_eq!(device.refused(&items).await, expected);
    let mut at = 0..;
    items.retain(|_| !guilty.contains(&at.next().unwrap()));
    assert_eq!(device.round(&items).await, []);
    assert_eq!(one(&plain, "SELECT u || v FROM s WHERE id = 111").await, "u51");
}

/// Values that PostgreSQL checks row by row change places, in pairs and in circles, by one constraint and by two, where NULL may
/// stand in for them and where not; whoever takes a value that nobody leaves is refused alone.
#[tokio::test]
async fn values_change_places_where_postgresql_checks_them_at_once() {
    let sqlite = "CREATE TABLE s (id INTEGER PRIMARY KEY, a TEXT UNIQUE, b TEXT NOT NULL UNIQUE, c INTEGER NOT NULL UNIQUE)";
    let postgres = "CREATE TABLE s (id int8 PRIMARY KEY, a text UNIQUE, b varchar(40) NOT NULL UNIQUE, c int4 NOT NULL);
                    CREATE UNIQUE INDEX ON s (c);
                    CREATE TABLE seen (id int8);
                    CREATE FUNCTION seen() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO seen VALUES (new.id); RETURN NULL; END $$;
                    CREATE TRIGGER seen AFTER UPDATE ON s FOR EACH ROW EXECUTE FUNCTION seen()";
    let (_database, plain, mut device) = bench(sqlite, postgres).await;
    let row =
        |id: i64, a: i64, b: i64, c: i64| [Int(id), text(&format!("a{a}")), text(&format!("b{b}")), Int(c)];
    let items: Vec<_> = (1..=9).map(|n| device.insert("s", &row(n, n, n, n))).collect();
    device.round(&items).await;
    let all = "SELECT string_agg(a || b || c, ' ' ORDER BY id) FROM s";
    let swap = |device: &Device, columns: &[&str]| {
        vec![device.update("s", columns, &row(1, 2, 2, 2)), device.update("s", columns, &row(2, 1, 1, 1))]
    };
    for (columns, after) in
        [(&["a"][..], "a2b1c1 a1b2c2"), (&["b"][..], "a2b2c1 a1b1c2"), (&["c"][..], "a2b2c2 a1b1c1")]
    {
        let items = swap(&device, columns);
        assert_eq!(device.round(&items).await, []);
        // What a trigger made of them meanwhile comes home.
        let home = device.pull(&plain).await;
        assert!(home.contains(&"1".into()) && home.contains(&"2".into()), "{home:?}");
        let expected = after.replace('c', "").split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(rows(&plain, "SELECT a || b || c FROM s WHERE id < 3 ORDER BY id").await, expected);
    }
    // A circle of three in all columns, beside a row that takes what stays, and one that only comes.
    let circle =
        [(3, 4), (4, 5), (5, 3)].map(|(id, to)| device.update("s", &["a", "b", "c"], &row(id, to, to, to)));
    let mut items = circle.to_vec();
    items.push(device.update("s", &["b"], &row(6, 0, 7, 0)));
    items.push(device.insert("s", &row(10, 10, 10, 10)));
    assert_eq!(device.refused(&items).await, [(3, "23505".into())]);
    items.remove(3);
    plain.batch_execute("TRUNCATE seen").await.unwrap();
    assert_eq!(device.round(&items).await, []);
    assert_eq!(one(&plain, all).await, "a2b22 a1b11 a4b44 a5b55 a3b33 a6b66 a7b77 a8b88 a9b99 a10b1010");
    // Only those that stood in each other's way were changed.
    assert_eq!(
        one(&plain, "SELECT string_agg(DISTINCT id::text, ' ' ORDER BY id::text) FROM seen").await,
        "3 4 5"
    );
    // One takes what the other leaves by one constraint, and the other way round by the other.
    let crossed = [
        device.update("s", &["a", "b"], &row(8, 9, 80, 0)),
        device.update("s", &["a", "b"], &row(9, 90, 8, 0)),
    ];
    assert_eq!(device.round(&crossed).await, []);
    assert_eq!(rows(&plain, "SELECT a || b FROM s WHERE id IN (8, 9) ORDER BY id").await, ["a9b80", "a90b8"]);
}

/// One page of a table, behind a key.
async fn page(
    session: &CloudSession,
    table: &Table,
    cloud_table: &CloudTable,
    after: Option<&[String]>,
    limit: usize,
) -> Vec<Vec<CloudValue>> {
    session.begin_pages(table, cloud_table, after).await.unwrap();
    let page = session.next_page(cloud_table, limit).await.unwrap();
    session.end_read().await.unwrap();
    page
}

/// A whole file's worth of rows with a few guilty ones, in one search unless the machine is so slow that it ends early: how
/// long it takes is printed.
#[tokio::test]
async fn thirteen_of_ten_thousand_are_found() {
    let postgres = "CREATE TABLE item (id int8 PRIMARY KEY, name text, n int8 CHECK (n > 0))";
    let (_database, plain, mut device) = bench(ITEM, postgres).await;
    let guilty: Vec<usize> = (0..13).map(|at| at * 769 + 5).collect();
    let mut items: Vec<_> = (0..10_000)
        .map(|at| {
            device.insert("item", &[Int(at as i64), text("a name"), Int(i64::from(!guilty.contains(&at)))])
        })
        .collect();
    let begun = Instant::now();
    let mut left: Vec<usize> = (0..items.len()).collect();
    let mut found = vec![];
    let mut searches = 0;
    while found.len() < guilty.len() {
        for (at, sqlstate) in device.refused(&items).await.into_iter().rev() {
            assert_eq!(sqlstate, "23514");
            items.remove(at);
            found.push(left.remove(at));
        }
        searches += 1;
    }
    println!("13 of 10,000 rows found in {:?}, {searches} searches", begun.elapsed());
    found.sort_unstable();
    assert_eq!(found, guilty);
    assert_eq!(device.round(&items).await, []);
    assert_eq!(one(&plain, "SELECT count(*) FROM item").await, "9987");
}

/// Two keys here that are one there: the second row is refused, not merged into the first in silence.
#[tokio::test]
async fn two_keys_that_are_one_in_the_cloud_are_refused() {
    let database = Postgres::shared().create_database().await;
    let admin = database.connect_as_admin().await;
    admin.batch_execute("CREATE EXTENSION citext").await.unwrap();
    let plain = database.connect().await;
    plain.batch_execute("CREATE TABLE k (id citext PRIMARY KEY, n int8)").await.unwrap();
    let mut device =
        Device::new(&cloud(&database), &tracked("CREATE TABLE k (id TEXT PRIMARY KEY NOT NULL, n INTEGER)"))
            .await;
    let items = [
        device.insert("k", &[text("abc"), Int(1)]),
        device.insert("k", &[text("ABC"), Int(2)]),
        device.insert("k", &[text("x"), Int(3)]),
    ];
    let refused = device.refused(&items).await;
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].1, "21000");
}

/// A table that was dropped or altered after it was prepared is nobody's bad data: prepared anew, the round goes
/// through.
#[tokio::test]
async fn a_table_that_changed_blames_no_row() {
    let (database, plain, mut device) = bench(ITEM, "").await;
    let items = [device.insert("item", &[Int(1), Null, Null])];
    for change in ["DROP TABLE item", "ALTER TABLE item RENAME COLUMN n TO m"] {
        plain.batch_execute(change).await.unwrap();
        assert_eq!(device.try_round(&items).await.unwrap_err().class, FailureClass::Transient, "{change}");
        device.reconnect(&cloud(&database)).await;
        device.tables = Device::new(&cloud(&database), &tracked(ITEM)).await.tables;
        assert_eq!(device.round(&items).await, [], "{change}");
        plain.batch_execute("DELETE FROM item").await.unwrap();
    }
}

/// A column that got another type after the table was prepared, so that what is sent would be rounded, cut, or refused without
/// anybody's guilt: the round changes nothing, whatever it does to how many rows.
#[tokio::test]
async fn a_column_of_another_type_ends_the_round() {
    let sqlite = "CREATE TABLE m (id INTEGER PRIMARY KEY, v REAL, w TEXT, flag BOOLEAN)";
    let postgres = "CREATE TABLE m (id int8 PRIMARY KEY, v float8, w varchar(20), flag boolean);
                    INSERT INTO m VALUES (1, 0.5, 'one', true), (2, 0.5, 'two', true)";
    let (database, plain, mut device) = bench(sqlite, postgres).await;
    let cloud = cloud(&database);
    let row = |id: i64| [Int(id), Float(1.5), text("a longer text"), Bool(true)];
    for change in [
        "v TYPE int8",
        "v TYPE float4",
        "v TYPE text",
        "w TYPE varchar(30)",
        "w TYPE varchar(20) COLLATE \"C\"",
        "flag TYPE int8 USING flag::int",
        "w SET NOT NULL",
    ] {
        device.reconnect(&cloud).await;
        device.tables = Device::new(&cloud, &tracked(sqlite)).await.tables;
        plain.batch_execute(&format!("ALTER TABLE m ALTER {change}")).await.unwrap();
        let before = rows(&plain, "SELECT * FROM m ORDER BY id").await;
        for items in [
            vec![device.insert("m", &row(3))],
            vec![device.insert("m", &row(3)), device.insert("m", &[Int(4), Null, Null, Null])],
            vec![device.update("m", &["v", "w"], &row(1))],
            vec![device.update("m", &["flag"], &row(1)), device.insert("m", &row(3))],
            vec![device.delete("m", &row(2)), device.update("m", &["v"], &row(1))],
        ] {
            let failure = device.try_round(&items).await.unwrap_err();
            assert_eq!(failure.class, FailureClass::Transient, "{change}: {failure:?}");
            assert!(failure.detail.contains("have changed since"), "{change}: {failure:?}");
            device.reconnect(&cloud).await;
        }
        assert_eq!(rows(&plain, "SELECT * FROM m ORDER BY id").await, before, "{change}");
    }
    device.tables = Device::new(&cloud, &tracked(sqlite)).await.tables;
    let only_flag = [device.update("m", &["flag"], &[Int(1), Null, Null, Int(0)])];
    assert_eq!(device.round(&only_flag).await, []);
}

/// An enumeration as a key: one that the cloud does not know is that row's trouble in an update and a delete too.
#[tokio::test]
async fn a_key_that_does_not_cast_is_that_rows_trouble() {
    let sqlite = "CREATE TABLE k (id TEXT PRIMARY KEY NOT NULL, n INTEGER)";
    let postgres = "CREATE TYPE e AS ENUM ('a', 'b'); CREATE TABLE k (id e PRIMARY KEY, n int8); INSERT INTO k VALUES ('a', 1)";
    let (_database, plain, mut device) = bench(sqlite, postgres).await;
    let items = [
        device.delete("k", &[text("zz"), Null]),
        device.update("k", &["n"], &[text("a"), Int(2)]),
        device.update("k", &["n"], &[text("yy"), Int(2)]),
    ];
    assert_eq!(device.refused(&items).await, [(0, "22P02".into()), (2, "22P02".into())]);
    assert_eq!(device.round(&items[1..2]).await, []);
    assert_eq!(rows(&plain, "SELECT * FROM k").await, ["a|2"]);
}

/// Rounds of thousands of rows stay quick, also when a long feed that nobody could pull yet lies beyond the cursor.
#[tokio::test]
async fn large_rounds_stay_quick() {
    let (_database, plain, mut device) = bench(ITEM, "").await;
    plain.batch_execute("CREATE TABLE theirs (id int8 PRIMARY KEY)").await.unwrap();
    let oid = device.tables[0].1.oid;
    plain
        .batch_execute(&format!(
            "INSERT INTO tidewater.changes (tbl, key, origin) SELECT {oid}, ARRAY[g::text], NULL FROM generate_series(1000001, 1050000) g"
        ))
        .await
        .unwrap();
    let begun = Instant::now();
    for round in 0..7 {
        let items: Vec<_> = (0..5000)
            .map(|at| device.insert("item", &[Int(round * 5000 + at), text("a name"), Int(at)]))
            .collect();
        assert_eq!(device.round(&items).await, []);
    }
    let inserted = begun.elapsed();
    for round in 0..7 {
        let items: Vec<_> = (0..5000)
            .map(|at| device.update("item", &["n"], &[Int(round * 5000 + at), Null, Int(1)]))
            .collect();
        assert_eq!(device.round(&items).await, []);
    }
    let updated = begun.elapsed() - inserted;
    println!("35,000 rows: inserted in {inserted:?}, updated in {updated:?}");
    assert!(begun.elapsed() < Duration::from_secs(20), "inserted in {inserted:?}, updated in {updated:?}");
    assert_eq!(one(&plain, "SELECT sum(n) FROM item").await, "35000");
}

/// The conflicts of a device arrive in the cloud's log with its round.
#[tokio::test]
async fn conflicts_are_logged_with_the_round() {
    let (_database, plain, device) = bench(ITEM, "").await;
    let field = |text: &str| Some(text.to_owned());
    let row = ConflictRow {
        fields: [
            field("item"),
            field("[1]"),
            field("n"),
            None,
            field("\"\\u0000\""),
            field("2"),
            field("local"),
        ],
    };
    let id = new_id();
    device.conn.round(device.frame(&id), &[], &[row], false).await.unwrap();
    assert_eq!(
        rows(&plain, "SELECT tbl, key, col, base, local, cloud, kept FROM tidewater.conflicts").await,
        ["item|[1]|n|NULL|\"\\u0000\"|2|local"]
    );
}

// ---------------------------------------------------------------------------------------------------------
// Cuts
// ---------------------------------------------------------------------------------------------------------

/// A device whose connections go through a proxy.
async fn bench_behind_proxy() -> (Database, Client, FaultProxy, Cloud, Device) {
    let database = Postgres::shared().create_database().await;
    let plain = database.connect().await;
    let proxy = FaultProxy::started(Postgres::shared().address());
    let cloud = Cloud::new(options(&database, proxy.port())).unwrap();
    let device = Device::new(&cloud, &tracked(ITEM)).await;
    (database, plain, proxy, cloud, device)
}

/// A COMMIT whose answer is cut is an error here and has happened there: the ledger tells.
#[tokio::test]
async fn a_commit_without_an_answer_is_in_the_ledger() {
    let (_database, plain, proxy, cloud, mut device) = bench_behind_proxy().await;
    let items = [device.insert("item", &[Int(1), text("one"), Null])];
    let id = new_id();
    let trigger = proxy.hold_when_client_sends(b"COMMIT");
    let failure = device.conn.round(device.frame(&id), &items, &[], false).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Transient, "{failure:?}");
    trigger.triggered(Duration::from_secs(5)).await;
    assert_eq!(device.reconnect(&cloud).await.round, Some(id));
    assert_eq!(rows(&plain, "SELECT id FROM item").await, ["1"]);
}

/// Wherever a round is cut, in either direction: afterwards the ledger and the data agree, all or nothing.
#[tokio::test]
async fn a_cut_anywhere_leaves_all_or_nothing() {
    let (_database, plain, proxy, cloud, mut device) = bench_behind_proxy().await;
    let items = [
        device.insert("item", &[Int(-1), text("a"), Null]),
        device.insert("item", &[Int(-2), text("a"), Null]),
    ];
    device.round(&items).await;
    device.reconnect(&cloud).await;
    let (mut happened, mut not, mut n) = (0, 0, 0);
    // A round of only new rows has its COMMIT sent behind it.
    for (to_server, only_new) in [(true, false), (false, false), (true, true), (false, true)] {
        // One whole round says how many bytes there are: the last ones, around the COMMIT, are cut more densely.
        let mut cuts = vec![None];
        while let Some(cut) = cuts.pop() {
            n += 1;
            let new = device.insert("item", &[Int(n), text("new"), Int(n)]);
            let other = match only_new {
                true => device.insert("item", &[Int(-n - 9), text("other"), Int(n)]),
                false => device.update("item", &["n"], &[Int(-1), Null, Int(n)]),
            };
            let items = [new, other];
            let id = new_id();
            match cut {
                Some(bytes) if to_server => drop(proxy.cut_client_to_server_after(bytes)),
                Some(bytes) => drop(proxy.cut_server_to_client_after(bytes)),
                None => {}
            }
            let before = proxy.stats();
            let ended = device.conn.round(device.frame(&id), &items, &[], false).await;
            let after = proxy.stats();
            proxy.clear_hooks();
            if cut.is_none() {
                ended.unwrap();
                let whole = if to_server {
                    after.client_to_server - before.client_to_server
                } else {
                    after.server_to_client - before.server_to_client
                };
                cuts = (0..whole).step_by(211).chain((whole - 40..whole).step_by(5)).map(Some).collect();
            } else if let Err(failure) = ended {
                let expected = [FailureClass::Transient, FailureClass::NotAnswering];
                assert!(expected.contains(&failure.class), "{failure:?}");
            }
            let ledger = device.reconnect(&cloud).await;
            let sql = format!(
                "SELECT (SELECT count(*) FROM item WHERE id = {n}), (SELECT count(*) FROM item WHERE id < 0 AND n = {n})"
            );
            let there = one(&plain, &sql).await;
            if ledger.round.as_ref() == Some(&id) {
                assert_eq!(there, "1|1");
                happened += usize::from(cut.is_some());
                device.previous = Some(id);
            } else {
                assert_eq!(ledger.round, device.previous);
                assert_eq!(there, "0|0");
                not += 1;
            }
        }
    }
    assert!(happened > 0 && not > 5, "{happened} {not}");
}

// ---------------------------------------------------------------------------------------------------------
// The feed
// ---------------------------------------------------------------------------------------------------------

/// Every way of writing by plain SQL is in the feed, by roles without rights on our schema, with triggers off
/// for replication, through cascades; a changed key is there with both.
#[tokio::test]
async fn plain_sql_is_seen_however_it_writes() {
    let sqlite = "CREATE TABLE p (a INTEGER, b TEXT, n INTEGER, PRIMARY KEY (b, a));
                  CREATE TABLE c (id INTEGER PRIMARY KEY, a INTEGER, b TEXT,
                                  FOREIGN KEY (b, a) REFERENCES p (b, a) ON DELETE CASCADE ON UPDATE CASCADE)";
    let (database, plain, mut device) = bench(sqlite, "").await;
    let role = other_role(&database).await;
    let grant = format!("GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON p, c TO {}", role.user);
    plain.batch_execute(&grant).await.unwrap();
    let writer = role.connect().await;
    for (sql, expected) in [
        ("INSERT INTO p VALUES (1, 'x', 1), (2, 'y', 1)", vec!["x/1", "y/2"]),
        ("UPDATE p SET n = 2 WHERE a = 1", vec!["x/1"]),
        ("UPDATE p SET n = 2 WHERE a = 77", vec![]),
        (
            "INSERT INTO p VALUES (1, 'x', 1), (3, 'z', 1) ON CONFLICT (b, a) DO UPDATE SET n = 5",
            vec!["x/1", "z/3"],
        ),
        ("INSERT INTO c VALUES (7, 1, 'x')", vec!["7"]),
        ("UPDATE p SET a = 9 WHERE a = 1", vec!["7", "x/1", "x/9"]),
        ("DELETE FROM p WHERE a = 9", vec!["7", "x/9"]),
        (
            "BEGIN; INSERT INTO p VALUES (4, 'q'); SAVEPOINT s; INSERT INTO p VALUES (5, 'q'); ROLLBACK TO s;
             INSERT INTO p VALUES (6, 'q'); COMMIT",
            vec!["q/4", "q/6"],
        ),
        (
            "MERGE INTO p USING (VALUES (4), (8)) AS v(a) ON p.a = v.a AND p.b = 'q'
             WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (v.a, 'q')",
            vec!["q/4", "q/8"],
        ),
        (
            "WITH gone AS (DELETE FROM p WHERE a = 8 RETURNING *) INSERT INTO p SELECT 10, b FROM gone",
            vec!["q/10", "q/8"],
        ),
        ("TRUNCATE p, c", vec!["whole table", "whole table"]),
    ] {
        writer.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let mut seen = device.pull(&plain).await;
        seen.sort();
        assert_eq!(seen, expected, "{sql}");
    }
    let copy = writer.copy_in::<_, &[u8]>("COPY p FROM STDIN").await.unwrap();
    let mut copy = std::pin::pin!(copy);
    futures_util::SinkExt::send(&mut copy, &b"11\tcopied\t1\n"[..]).await.unwrap();
    copy.as_mut().finish().await.unwrap();
    assert_eq!(device.pull(&plain).await, ["copied/11"]);
    let admin = database.connect_as_admin().await;
    admin.batch_execute("SET session_replication_role = replica; UPDATE p SET n = 0").await.unwrap();
    assert_eq!(device.pull(&plain).await, ["copied/11"]);
}

/// What a round writes as sent is its own echo; whatever it caused beyond that makes all of it news.
#[tokio::test]
async fn only_an_exact_echo_is_our_own() {
    let sqlite = "CREATE TABLE plain (id INTEGER PRIMARY KEY, v TEXT, n INTEGER);
                  CREATE TABLE child (id INTEGER PRIMARY KEY, plain INTEGER REFERENCES plain (id) ON DELETE CASCADE);
                  CREATE TABLE touch (id INTEGER PRIMARY KEY, v TEXT, at TEXT);
                  CREATE TABLE lower (id INTEGER PRIMARY KEY, v TEXT);
                  CREATE TABLE doc (id INTEGER PRIMARY KEY, v TEXT);
                  CREATE TABLE scale (id INTEGER PRIMARY KEY, v NUMERIC)";
    let postgres = "CREATE TABLE touch (id int8 PRIMARY KEY, v text, at text);
        CREATE TABLE lower (id int8 PRIMARY KEY, v text);
        CREATE TABLE doc (id int8 PRIMARY KEY, v jsonb);
        CREATE TABLE scale (id int8 PRIMARY KEY, v numeric(10,2));
        CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN new.at := 'now'; RETURN new; END $$;
        CREATE TRIGGER touch BEFORE UPDATE ON touch FOR EACH ROW EXECUTE FUNCTION touch();
        CREATE FUNCTION low() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN new.v := lower(new.v); RETURN new; END $$;
        CREATE TRIGGER lower BEFORE INSERT OR UPDATE ON lower FOR EACH ROW EXECUTE FUNCTION low()";
    let (_database, plain, mut device) = bench(sqlite, postgres).await;
    for (what, table, id, v, own) in [
        ("as sent", "plain", 1, text("a"), true),
        ("a number's scale", "scale", 1, text("1.5"), true),
        ("a rounded number", "scale", 2, text("1.555"), false),
        ("a trigger changes nothing", "lower", 1, text("abc"), true),
        ("a trigger changes the value", "lower", 2, text("ABC"), false),
        ("canonical jsonb", "doc", 1, text("{\"a\": 1}"), true),
        ("other jsonb", "doc", 2, text("{\"a\":1}"), false),
        ("a trigger for updates only", "touch", 1, text("a"), true),
    ] {
        let width = device.tables.iter().find(|(t, _)| t.name == table).unwrap().0.columns.len();
        let mut values = vec![Null; width];
        (values[0], values[1]) = (Int(id), v);
        // Another table's row in the same round shares the fate.
        let items = [device.insert(table, &values), device.insert("child", &[Int(fastrand::i64(..)), Null])];
        assert_eq!(device.round(&items).await, [], "{what}");
        let seen = device.pull(&plain).await;
        assert!(seen.len() == 2 && seen.iter().all(|entry| (entry == "own") == own), "{what}: {seen:?}");
    }
    let items = [device.update("touch", &["v"], &[Int(1), text("b"), Null])];
    device.round(&items).await;
    assert_eq!(device.pull(&plain).await, ["1"], "a trigger changed a column that was not sent");
    let items = [device.update("doc", &["v"], &[Int(1), text("[ ]")])];
    device.round(&items).await;
    assert_eq!(device.pull(&plain).await, ["1"]);
    plain.batch_execute("INSERT INTO child VALUES (5, 1)").await.unwrap();
    device.pull(&plain).await;
    let items = [device.delete("plain", &[Int(1), Null, Null])];
    assert_eq!(device.round(&items).await, []);
    let mut seen = device.pull(&plain).await;
    seen.sort();
    assert_eq!(seen, ["1", "5"], "a cascade");
    let items =
        [device.insert("plain", &[Int(2), Null, Null]), device.insert("plain", &[Int(3), Null, Null])];
    device.round(&items).await;
    let items = [
        device.delete("plain", &[Int(2), Null, Null]),
        device.update("plain", &["n"], &[Int(3), Null, Int(1)]),
        device.delete("plain", &[Int(99), Null, Null]),
    ];
    assert_eq!(device.round(&items).await, [], "a delete of a row that is gone is no error");
    assert_eq!(device.pull(&plain).await, ["own"; 3]);
}

/// Transactions that commit in another order than they began: nothing is passed over.
#[tokio::test]
async fn the_cursor_never_passes_an_open_transaction() {
    let (database, plain, mut device) = bench(ITEM, "").await;
    let (early, late) = (database.connect().await, database.connect().await);
    early.batch_execute("BEGIN; INSERT INTO item VALUES (1)").await.unwrap();
    late.batch_execute("BEGIN; INSERT INTO item VALUES (2); COMMIT").await.unwrap();
    assert!(device.feed().await.is_empty());
    early.batch_execute("COMMIT").await.unwrap();
    assert_eq!(device.pull(&plain).await, ["1", "2"]);
    assert!(device.conn.cursor_is_there(&device.cursor).await.unwrap());
    let other = Cursor { tag: device.cursor.tag.map(|tag| tag ^ 1), ..device.cursor.clone() };
    assert!(!device.conn.cursor_is_there(&other).await.unwrap());
}

/// Keys in the feed look the same whatever the writing session's settings, and find their rows again.
#[tokio::test]
async fn keys_are_independent_of_the_writers_settings() {
    let sqlite =
        "CREATE TABLE k (ts DATETIME, tz TEXT, d DATE, f REAL, b BLOB, u UUID, t TEXT, l BOOLEAN, v TEXT,
                                  PRIMARY KEY (ts, tz, d, f, b, u, t, l))";
    let postgres =
        "CREATE TABLE k (ts timestamp, tz timestamptz, d date, f float8, b bytea, u uuid, t text, l bool,
                                    v text, PRIMARY KEY (ts, tz, d, f, b, u, t, l))";
    let (_database, plain, mut device) = bench(sqlite, postgres).await;
    plain
        .batch_execute(
            "SET datestyle = 'German, DMY'; SET timezone = 'Asia/Tokyo'; SET bytea_output = 'escape';
             SET extra_float_digits = -5; SET intervalstyle = 'iso_8601'",
        )
        .await
        .unwrap();
    plain
        .batch_execute(
            "INSERT INTO k VALUES ('2024-02-03 04:05:06.7', '2024-02-03 04:05:06+00', '2024-02-03',
             0.1::float8 + 0.2::float8, '\\x00ff5c', '6f2c1c2e-3c4b-4f7e-9d35-0242ac120002', 'a/b', true, 'x')",
        )
        .await
        .unwrap();
    device.pull(&plain).await;
    let start = Cursor { xid: "0".into(), id: 0, tag: None };
    let page = device.conn.feed_page(&start, 0, (10, 8), &device.id).await.unwrap();
    let [key] = page.entries[0].keys.clone().unwrap().try_into().unwrap();
    assert_eq!(
        key,
        [
            "2024-02-03 04:05:06.7",
            "2024-02-03 04:05:06+00",
            "2024-02-03",
            "0.30000000000000004",
            "\\x00ff5c",
            "6f2c1c2e-3c4b-4f7e-9d35-0242ac120002",
            "a/b",
            "true"
        ]
    );
    let (table, cloud_table) = &device.tables[0];
    assert_eq!(device.conn.fetch(table, cloud_table, &table.key, &[key]).await.unwrap().len(), 1);
}

/// Paging in key order meets every row exactly once, whatever the key's type and its collation.
#[tokio::test]
async fn paging_meets_every_row_once() {
    let uuids = ["6f2c1c2e-3c4b-4f7e-9d35-0242ac120002", "00000000-0000-0000-0000-000000000000"];
    let times = ["2024-01-01", "0001-01-01", "infinity", "-infinity", "2024-01-01 00:00:00.000001"];
    let floats = ["NaN", "Infinity", "-Infinity", "0.1", "5e-324", "1e300", "0.30000000000000004", "-0.0"];
    for (kind, sqlite_kind, values) in [
        ("text COLLATE \"en-x-icu\"", "TEXT", &["a", "B", "b", "A", "ä", "-a", " a", "", "é", "''q"][..]),
        ("bytea", "BLOB", &["", "\\x00", "\\xff", "\\x0001", "\\x5c"]),
        ("uuid", "UUID", &uuids),
        ("timestamp", "DATETIME", &times),
        ("float8", "REAL", &floats),
        ("numeric", "NUMERIC", &["1", "1e300", "-0.001", "1e-20"]),
        ("bool", "BOOLEAN", &["true", "false"]),
    ] {
        let sqlite = format!("CREATE TABLE k (n INTEGER, k {sqlite_kind}, PRIMARY KEY (k, n))");
        let mut postgres = format!("CREATE TABLE k (n int8, k {kind}, PRIMARY KEY (k, n));");
        for value in values {
            postgres += &format!("INSERT INTO k SELECT n, '{value}' FROM generate_series(-1, 1) n;");
        }
        let (_database, _plain, device) = bench(&sqlite, &postgres).await;
        let (table, cloud_table) = &device.tables[0];
        let expected = values.len() * 3;
        device.conn.begin_read().await.unwrap();
        let mut seen: Vec<Vec<String>> = vec![];
        loop {
            let rows = page(&device.conn, table, cloud_table, seen.last().map(Vec::as_slice), 2).await;
            if rows.is_empty() {
                break;
            }
            seen.extend(rows.iter().map(|row| {
                let key: Vec<CloudValue> = table.key.iter().map(|c| row[*c].clone()).collect();
                tidewater_actors::postgres::key_text(&key)
            }));
            assert!(seen.len() <= expected, "{kind}");
        }
        device.conn.end_read().await.unwrap();
        let mut distinct = seen.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!((seen.len(), distinct.len()), (expected, expected), "{kind}");
    }
}

// ---------------------------------------------------------------------------------------------------------
// What failures mean
// ---------------------------------------------------------------------------------------------------------

/// A connection killed in the middle of a transaction is transient, or the server's own word that it stops.
#[tokio::test]
async fn a_killed_connection_is_no_ones_bad_data() {
    let (database, plain, mut device) = bench(ITEM, "").await;
    device.conn.begin_read().await.unwrap();
    plain
        .batch_execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()")
        .await
        .unwrap();
    let failure = device.conn.last_seen(&device.id).await.unwrap_err();
    assert!(matches!(failure.class, FailureClass::Transient | FailureClass::Busy), "{failure:?}");
    device.reconnect(&cloud(&database)).await;
    let items = [device.insert("item", &[Int(1), Null, Null])];
    assert_eq!(device.round(&items).await, []);
}

/// C3: a session dropped in the middle of a transaction is closed, one that is released is used again, and so is the
/// check's.
#[tokio::test]
async fn only_clean_connections_return_to_the_pool() {
    let (_database, plain, proxy, cloud, device) = bench_behind_proxy().await;
    device.conn.release();
    let dialled = proxy.accepted();
    for _ in 0..3 {
        cloud.check().await.unwrap();
        cloud.connect().await.unwrap().release();
    }
    assert_eq!(proxy.accepted(), dialled);
    let session = cloud.connect().await.unwrap();
    session.begin_read().await.unwrap();
    drop(session);
    proxy
        .wait_for_async("the connection to be closed", Duration::from_secs(5), |stats| stats.live == 0)
        .await;
    let begun = Instant::now();
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tidewater-test' AND datname = current_database()";
    while one(&plain, sql).await != "0" {
        assert!(begun.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cloud.check().await.unwrap();
    assert_eq!(proxy.accepted(), dialled + 1);
    // Dropped while a statement runs: closed as well.
    let session = cloud.connect().await.unwrap();
    let device = Device::new(&cloud, &tracked(ITEM)).await;
    let blocker = "BEGIN; LOCK TABLE tidewater.devices";
    plain.batch_execute(blocker).await.unwrap();
    let settling = tokio::time::timeout(Duration::from_millis(50), async move {
        let result = session.settle(&device.id, &device.session, None).await;
        session.release();
        result
    });
    assert!(settling.await.is_err());
    plain.batch_execute("COMMIT").await.unwrap();
    cloud.check().await.unwrap();
}

/// The server's own bound ends a statement that waits too long, and a transaction whose client went silent does
/// not keep its locks.
#[tokio::test]
async fn waits_are_bounded() {
    let (database, plain, mut device) = bench(ITEM, "").await;
    let items = [device.insert("item", &[Int(1), Null, Null])];
    device.round(&items).await;
    let short = Cloud::new(CloudOptions {
        statement_timeout: Duration::from_millis(200),
        ..options(&database, database.port)
    })
    .unwrap();
    let other = database.connect().await;
    other.batch_execute("BEGIN; UPDATE item SET n = 1").await.unwrap();
    device.reconnect(&short).await;
    let items = [device.update("item", &["n"], &[Int(1), Null, Int(2)])];
    let outcome = device.try_round(&items).await.unwrap();
    assert!(
        matches!(&outcome, RoundOutcome::TooSlow(failure) if failure.class == FailureClass::Transient),
        "{outcome:?}"
    );
    other.batch_execute("ROLLBACK").await.unwrap();
    let idle = short.connect().await.unwrap();
    idle.begin_read().await.unwrap();
    let begun = Instant::now();
    while one(&plain, "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()").await != "0" {
        assert!(begun.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let failure = idle.last_seen(&new_id()).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Transient, "{failure:?}");
}

// ---------------------------------------------------------------------------------------------------------
// Everything at once
// ---------------------------------------------------------------------------------------------------------

/// Two devices and plain SQL write one table in random histories, with what leaves a round tried again as the cloud's
/// row asks for: at the end the table is what the last accepted writes of each column say.
#[tokio::test]
async fn random_histories_end_as_the_model_says() {
    use std::collections::BTreeMap;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (database, plain, first) = bench(ITEM, "").await;
    let second = Device::new(&cloud(&database), &tracked(ITEM)).await;
    let mut devices = [first, second];
    let mut model: BTreeMap<i64, (Option<String>, Option<i64>)> = BTreeMap::new();
    for step in 0..150 {
        let who = random.usize(..3);
        let ids: Vec<i64> = (0..8).filter(|_| random.u8(..3) == 0).collect();
        if who == 2 {
            for id in ids {
                let sql = match random.u8(..3) {
                    0 => format!(
                        "INSERT INTO item VALUES ({id}, 's{step}', {step}) ON CONFLICT (id) DO UPDATE SET n = {step}"
                    ),
                    1 => format!("UPDATE item SET name = 's{step}' WHERE id = {id}"),
                    _ => format!("DELETE FROM item WHERE id = {id}"),
                };
                plain.batch_execute(&sql).await.unwrap();
                match &sql[..6] {
                    "INSERT" => {
                        let row = model.entry(id).or_insert((Some(format!("s{step}")), None));
                        row.1 = Some(step);
                    }
                    "UPDATE" => {
                        if let Some(row) = model.get_mut(&id) {
                            row.0 = Some(format!("s{step}"));
                        }
                    }
                    _ => drop(model.remove(&id)),
                }
            }
            continue;
        }
        let device = &mut devices[who];
        if random.u8(..4) == 0 {
            device.pull(&plain).await;
        }
        // What this device wants of each row, and how it asks for it first.
        let mut wanted: Vec<RoundItem> = ids
            .iter()
            .map(|id| {
                let values = [Int(*id), text(&format!("d{who}-{step}")), Int(step * 10 + 1)];
                match random.u8(..4) {
                    0 => device.insert("item", &values),
                    1 => device.update("item", &["name"], &values),
                    2 => device.update("item", &["n", "name"], &values),
                    _ => device.delete("item", &values),
                }
            })
            .collect();
        for attempt in 0.. {
            assert!(attempt < 4, "it does not come to an end: {wanted:?}");
            let hits = device.round(&wanted).await;
            let mut again = vec![];
            for (at, item) in wanted.iter().enumerate() {
                let hit = hits.iter().find(|hit| hit.item == at);
                let Int(id) = item.key[0] else { unreachable!() };
                match hit {
                    // The cloud's row decides between insert and update; a deleted one comes back whole.
                    Some(hit) => {
                        let mut item = item.clone();
                        assert_eq!(hit.row.is_some(), model.contains_key(&id), "{hit:?}");
                        item.seen = hit.seen;
                        item.op = match (&item.op, &hit.row) {
                            (Op::Delete, _) => Op::Delete,
                            (_, None) => Op::Insert,
                            (Op::Insert, Some(_)) => Op::Update(vec![1, 2]),
                            (op, Some(_)) => op.clone(),
                        };
                        again.push(item);
                    }
                    None => {
                        let CloudValue::Text(name) = &item.values[1] else { unreachable!() };
                        let Int(n) = item.values[2] else { unreachable!() };
                        match &item.op {
                            Op::Insert => drop(model.insert(id, (Some(name.clone()), Some(n)))),
                            Op::Delete => drop(model.remove(&id)),
                            Op::Update(columns) => {
                                let row = model.get_mut(&id).expect("only rows that are there are updated");
                                row.0 = Some(name.clone());
                                if columns.contains(&2) {
                                    row.1 = Some(n);
                                }
                            }
                        }
                    }
                }
            }
            if again.is_empty() {
                break;
            }
            wanted = again;
        }
    }
    let expected: Vec<String> = model
        .iter()
        .map(|(id, (name, n))| {
            format!(
                "{id}|{}|{}",
                name.as_deref().unwrap_or("NULL"),
                n.map_or("NULL".into(), |n| n.to_string())
            )
        })
        .collect();
    assert_eq!(rows(&plain, "SELECT * FROM item ORDER BY id").await, expected);
}

/// A trigger that changes what is inserted, and that came after the table was prepared, is noticed by the round that it
/// changes; one that discards rows is blamed for them.
#[tokio::test]
async fn a_trigger_that_comes_later_is_noticed() {
    let (_database, plain, mut device) =
        bench("CREATE TABLE note (id INTEGER PRIMARY KEY, v TEXT)", "").await;
    let first = [device.insert("note", &[Int(1), text("ABC")])];
    assert_eq!(device.round(&first).await, []);
    assert_eq!(device.pull(&plain).await, ["own"]);
    plain
        .batch_execute(
            "CREATE FUNCTION low() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN new.v := lower(new.v); RETURN new; END $$;
             CREATE TRIGGER low BEFORE INSERT ON note FOR EACH ROW EXECUTE FUNCTION low()",
        )
        .await
        .unwrap();
    let second = [device.insert("note", &[Int(2), text("ABC")])];
    assert_eq!(device.round(&second).await, []);
    assert_eq!(device.pull(&plain).await, ["2"]);
    plain
        .batch_execute(
            "CREATE OR REPLACE FUNCTION low() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
        )
        .await
        .unwrap();
    let third = [device.insert("note", &[Int(3), text("ABC")])];
    assert_eq!(device.refused(&third).await, [(0, "02000".to_owned())]);
}

/// A table that gets a rule, or a trigger that gives rows another key, after it was prepared is not taken at its word, however
/// often it is written to and whatever else is in the round.
#[tokio::test]
async fn a_table_that_keeps_its_word_no_more_is_not_taken_at_it() {
    let sqlite = "CREATE TABLE note (id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE code (k TEXT PRIMARY KEY, v TEXT); \
                  CREATE TABLE other (id INTEGER PRIMARY KEY, v TEXT)";
    let (_database, plain, mut device) = bench(sqlite, "").await;
    let first = [device.insert("other", &[Int(1), text("a")])];
    assert_eq!(device.round(&first).await, []);
    plain
        .batch_execute(
            "CREATE TABLE elsewhere (LIKE note);
             CREATE RULE moved AS ON INSERT TO note DO INSTEAD INSERT INTO elsewhere VALUES (NEW.*);
             CREATE FUNCTION loud() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN new.k := upper(new.k); RETURN new; END $$;
             CREATE TRIGGER loud BEFORE INSERT ON code FOR EACH ROW EXECUTE FUNCTION loud()",
        )
        .await
        .unwrap();
    for id in 2..5 {
        let note = device.insert("note", &[Int(id), text("a")]);
        let code = device.insert("code", &[text(&format!("k{id}")), text("a")]);
        let other = device.update("other", &["v"], &[Int(1), text(&format!("v{id}"))]);
        assert_eq!(device.refused(std::slice::from_ref(&code)).await, [(0, "02000".to_owned())]);
        assert_eq!(device.refused(&[other.clone(), code]).await, [(1, "02000".to_owned())]);
        assert_eq!(device.refused(std::slice::from_ref(&note)).await, [(0, "0A000".to_owned())]);
        assert_eq!(device.refused(&[other, note]).await, [(1, "0A000".to_owned())]);
    }
    let nothing = "SELECT (SELECT count(*) FROM elsewhere), (SELECT count(*) FROM code)";
    assert_eq!(one(&plain, nothing).await, "0|0");
}

/// A session that is not the last one that settled changes nothing, however much it sends behind its fence.
#[tokio::test]
async fn nothing_behind_a_fence_that_is_shut_is_carried_out() {
    let (database, plain, mut device) = bench("CREATE TABLE note (id INTEGER PRIMARY KEY, v TEXT)", "").await;
    let cloud = cloud(&database);
    let newer = cloud.connect().await.unwrap();
    newer.settle(&device.id, &new_id(), None).await.unwrap();
    // Whoever waited for this lock would wait for ever: the statements behind the fence must not even be tried.
    plain.batch_execute("BEGIN; LOCK TABLE note").await.unwrap();
    let items = [device.insert("note", &[Int(1), text("a")])];
    let failure = device.try_round(&items).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Transient, "{failure:?}");
    plain.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(one(&plain, "SELECT count(*) FROM note").await, "0");
}

/// A deletion that is all there is to a round is refused like any other where row-level security hides the row: it would take
/// no effect, and nobody would know.
#[tokio::test]
async fn a_deletion_of_a_hidden_row_is_refused_alone_as_well() {
    let (_database, plain, mut device) = bench(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)",
        "CREATE TABLE t (id int8 PRIMARY KEY, v text);
         INSERT INTO t VALUES (1, 'hidden'), (2, 'seen');
         ALTER TABLE t ENABLE ROW LEVEL SECURITY; ALTER TABLE t FORCE ROW LEVEL SECURITY;
         CREATE POLICY p ON t USING (v <> 'hidden')",
    )
    .await;
    let _ = plain;
    let item = device.delete("t", &[Int(1), Null]);
    assert_eq!(device.refused(&[item]).await, [(0, "02000".to_owned())]);
}

/// A fence whose transaction did not begin (the server was told to cancel just that) says no: nobody may take a round for
/// done of which nothing was carried out.
#[tokio::test]
async fn a_fence_without_its_transaction_says_no() {
    let (_database, plain, device) =
        bench("CREATE TABLE t (id INTEGER PRIMARY KEY)", "CREATE TABLE t (id int8 PRIMARY KEY)").await;
    let id = |text: &str| uuid::Uuid::parse_str(text).unwrap();
    let fence = include_str!("../src/sql/postgres/fence.sql");
    let (round, before) = (uuid::Uuid::new_v4(), device.previous.as_deref().map(id));
    let (of, session) = (id(&device.id), id(&device.session));
    let error = plain
        .query(fence, &[&round, &of, &session, &before, &device.cursor.xid, &device.cursor.id])
        .await
        .unwrap_err();
    assert_eq!(error.code().unwrap().code(), "22012");
}

// ---------------------------------------------------------------------------------------------------------
// The trim
// ---------------------------------------------------------------------------------------------------------

const LIMITS: FeedLimits = FeedLimits {
    pause: Duration::ZERO,
    retire_after: Duration::from_secs(600),
    entries_max: 1_000_000,
    conflicts_max: 1_000_000,
};

const THEIRS: &str = "SELECT count(*) FROM tidewater.changes WHERE origin IS NULL";

impl Device {
    /// Says how far it has read.
    async fn reached(&self) {
        assert!(self.says_how_far().await, "it is not registered");
    }

    /// Says it, and whether the cloud still keeps the feed for it.
    async fn says_how_far(&self) -> bool {
        self.conn.bear_witness(&self.id, &self.session, Some(&self.cursor)).await.unwrap().unwrap().1
    }

    /// It was last seen an hour ago.
    async fn sleeps(&self, plain: &Client) {
        let sql = format!(
            "UPDATE tidewater.devices SET seen_at = now() - interval '1 hour' WHERE id = '{}'",
            self.id
        );
        plain.batch_execute(&sql).await.unwrap();
    }

    async fn is_whole(&self) -> bool {
        self.conn.look(&self.cursor, &self.id).await.unwrap().whole
    }
}

/// A device that has read everything but somebody else's change of item 1, and another one that has read that, too.
async fn one_behind() -> (Database, Client, Device, Device) {
    let (database, plain, mut behind) = bench(ITEM, "").await;
    for id in [1, 2] {
        behind.round(&[behind.insert("item", &[Int(id), text("ours"), Null])]).await;
    }
    behind.pull(&plain).await;
    behind.reached().await;
    let mut ahead = Device::new(&cloud(&database), &tracked(ITEM)).await;
    plain.batch_execute("UPDATE item SET name = 'theirs' WHERE id = 1").await.unwrap();
    plain.batch_execute("UPDATE item SET name = 'theirs' WHERE id = 2").await.unwrap();
    ahead.pull(&plain).await;
    ahead.reached().await;
    (database, plain, behind, ahead)
}

/// A trim goes up to the slowest cursor, whose entry it leaves, and is not done again before its time.
#[tokio::test]
async fn a_trim_goes_up_to_the_slowest_cursor() {
    let (_database, plain, mut behind, ahead) = one_behind().await;
    let trimmed = ahead.conn.trim(&LIMITS).await.unwrap();
    assert_eq!((trimmed.gone, trimmed.passed, trimmed.more), (1, 0, false), "of its two the last stays");
    assert!(behind.conn.look(&behind.cursor, &behind.id).await.unwrap().there);
    assert_eq!(behind.pull(&plain).await, ["1", "2"]);
    behind.reached().await;
    let pause = FeedLimits { pause: Duration::from_secs(600), ..LIMITS };
    assert_eq!(ahead.conn.trim(&pause).await.unwrap().gone, 0, "done a moment ago");
    assert_eq!(ahead.conn.trim(&LIMITS).await.unwrap().gone, 2);
    assert_eq!(one(&plain, "SELECT count(*) FROM tidewater.changes").await, "1");
    let look = behind.conn.look(&behind.cursor, &behind.id).await.unwrap();
    assert!(look.there && look.whole && !look.news);
    assert_eq!(behind.round(&[behind.update("item", &["n"], &[Int(1), Null, Int(1)])]).await, []);
}

/// A device that is gone past builds on nothing: no page, no round. What it would have overwritten stays, until it has
/// compared.
#[tokio::test]
async fn a_device_that_a_trim_went_past_sends_nothing_before_it_has_compared() {
    let (database, plain, mut behind, ahead) = one_behind().await;
    behind.sleeps(&plain).await;
    let trimmed = ahead.conn.trim(&LIMITS).await.unwrap();
    assert_eq!((trimmed.passed, one(&plain, THEIRS).await), (1, "1".into()));
    let edit = behind.update("item", &["name"], &[Int(1), text("stale"), Null]);
    for _ in 0..2 {
        let look = behind.conn.look(&behind.cursor, &behind.id).await.unwrap();
        assert!(look.require_whole().is_err(), "{look:?}");
        assert!(behind.conn.feed_page(&behind.cursor, 0, (10, 1), &behind.id).await.is_err());
        let failure = behind.try_round(std::slice::from_ref(&edit)).await.unwrap_err();
        assert_eq!(failure.class, FailureClass::Transient);
        // As does whoever wakes with a session of its own.
        behind.conn = cloud(&database).connect().await.unwrap();
        behind.session = new_id();
        behind.conn.settle(&behind.id, &behind.session, Some(&behind.cursor)).await.unwrap();
    }
    assert_eq!(one(&plain, "SELECT name FROM item WHERE id = 1").await, "theirs");
    behind.cursor = behind.conn.register(&behind.id, &behind.session).await.unwrap();
    assert!(behind.is_whole().await);
    behind.round(&[edit]).await;
    // It counts again.
    plain.batch_execute("UPDATE item SET name = 'later' WHERE id = 2").await.unwrap();
    committed(&plain).await;
    ahead.conn.trim(&LIMITS).await.unwrap();
    assert_eq!(behind.pull(&plain).await, ["own", "2"]);
}

/// A trim that comes while a round is open does not go past its device, however long that was not seen: the round sees what
/// others changed.
#[tokio::test]
async fn a_trim_does_not_go_past_an_open_round() {
    let (_database, plain, behind, ahead) = one_behind().await;
    let id = new_id();
    let frame = behind.frame(&id);
    behind.sleeps(&plain).await;
    let items = vec![behind.update("item", &["name"], &[Int(1), text("stale"), Null])];
    let mut open = behind.conn.open_round(frame).await.unwrap();
    let free = format!("SELECT id FROM tidewater.devices WHERE id = '{}' FOR UPDATE SKIP LOCKED", behind.id);
    let begun = Instant::now();
    while !rows(&plain, &free).await.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(10), "the fence does not stand");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let trimmed = ahead.conn.trim(&LIMITS).await.unwrap();
    assert_eq!((trimmed.passed, one(&plain, THEIRS).await), (0, "2".into()));
    open.send(std::sync::Arc::new(items.clone())).await;
    let judged = open.judge(&[]).await;
    let outcome = behind.conn.conclude(frame, &items.clone().into(), &[], false, judged).await.unwrap();
    let RoundOutcome::Committed { hits, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(hits.iter().map(|hit| hit.item).collect::<Vec<_>>(), [0]);
    assert_eq!(one(&plain, "SELECT name FROM item WHERE id = 1").await, "theirs");
}

/// An older file of the same device reads on from its own cursor: the feed is kept from there, or the device has to compare.
#[tokio::test]
async fn a_device_that_was_set_back_is_kept_the_feed_from_there() {
    let (_database, plain, mut behind, ahead) = one_behind().await;
    let older = behind.cursor.clone();
    behind.pull(&plain).await;
    behind.reached().await;
    behind.conn.settle(&behind.id, &behind.session, Some(&older)).await.unwrap();
    ahead.conn.trim(&LIMITS).await.unwrap();
    assert_eq!(one(&plain, THEIRS).await, "2");
    behind.conn.settle(&behind.id, &behind.session, Some(&behind.cursor)).await.unwrap();
    ahead.conn.trim(&LIMITS).await.unwrap();
    assert_eq!(one(&plain, THEIRS).await, "1");
    behind.conn.settle(&behind.id, &behind.session, Some(&older)).await.unwrap();
    behind.cursor = older;
    assert!(!behind.is_whole().await);
    assert!(behind.try_round(&[behind.insert("item", &[Int(3), Null, Null])]).await.is_err());
}

/// A feed with more entries than it may have is trimmed past those who are seen as well, but not beyond what may still commit.
#[tokio::test]
async fn a_feed_that_is_too_large_is_trimmed_past_slow_devices() {
    let server = Postgres::start();
    let database = server.create_database().await;
    let plain = database.connect().await;
    let mut slow = Device::new(&cloud(&database), &tracked(ITEM)).await;
    slow.round(&[slow.insert("item", &[Int(1), Null, Null])]).await;
    let mut quick = Device::new(&cloud(&database), &tracked(ITEM)).await;
    let holder = database.connect().await;
    holder.batch_execute("BEGIN; INSERT INTO item VALUES (1000)").await.unwrap();
    // An entry each.
    let many = "DO $$ BEGIN FOR n IN 2..40 LOOP INSERT INTO item VALUES (n); END LOOP; END $$";
    plain.batch_execute(many).await.unwrap();
    let few = FeedLimits { entries_max: 10, ..LIMITS };
    quick.feed().await;
    let trimmed = quick.conn.trim(&few).await.unwrap();
    assert_eq!(trimmed.gone, 0, "one entry lies below the horizon, and is the last there");
    holder.batch_execute("COMMIT").await.unwrap();
    assert_eq!(quick.pull(&plain).await.len(), 40);
    quick.reached().await;
    let trimmed = quick.conn.trim(&few).await.unwrap();
    assert_eq!((trimmed.gone, trimmed.passed), (30, 1), "{trimmed:?}");
    assert!(quick.is_whole().await && !slow.is_whole().await);
    assert!(slow.try_round(&[slow.insert("item", &[Int(50), Null, Null])]).await.is_err());
    let update = quick.update("item", &["n"], &[Int(40), Null, Int(1)]);
    assert_eq!(quick.round(&[update]).await, []);
}

/// What is on record of a device that somebody has deleted from the ledger holds nothing; a device of which only that record
/// is gone learns of it, and holds the trim until it has settled anew.
#[tokio::test]
async fn half_a_record_of_a_device_neither_holds_the_trim_for_ever_nor_lets_it_go_past_unseen() {
    let (_database, plain, behind, ahead) = one_behind().await;
    let delete =
        |table: &str, of: &str| format!("DELETE FROM tidewater.{table} WHERE {of} = '{}'", behind.id);
    plain.batch_execute(&delete("cursors", "device")).await.unwrap();
    assert_eq!(ahead.conn.trim(&LIMITS).await.unwrap().gone, 0);
    assert!(!behind.says_how_far().await);
    behind.conn.settle(&behind.id, &behind.session, Some(&behind.cursor)).await.unwrap();
    assert!(behind.says_how_far().await && behind.is_whole().await);
    assert_eq!((ahead.conn.trim(&LIMITS).await.unwrap().gone, one(&plain, THEIRS).await), (1, "2".into()));
    plain.batch_execute(&delete("devices", "id")).await.unwrap();
    assert_eq!((ahead.conn.trim(&LIMITS).await.unwrap().gone, one(&plain, THEIRS).await), (2, "1".into()));
    assert_eq!(one(&plain, "SELECT count(*) FROM tidewater.cursors").await, "1");
}

/// A device of a version that does not say how far it has read holds the trim, as long as it is seen. What it does not ask, the
/// ledger tells it when it comes back: that it has to compare.
#[tokio::test]
async fn a_device_that_does_not_say_how_far_it_is_holds_the_trim() {
    let (_database, plain, mut behind, ahead) = one_behind().await;
    behind.pull(&plain).await;
    behind.reached().await;
    let older = new_id();
    let settle = format!("INSERT INTO tidewater.devices (id, session) VALUES ('{older}', gen_random_uuid())");
    plain.batch_execute(&settle).await.unwrap();
    assert_eq!(ahead.conn.trim(&LIMITS).await.unwrap().gone, 0);
    let sleeps = "UPDATE tidewater.devices SET seen_at = now() - interval '1 hour' WHERE id = ";
    plain.batch_execute(&format!("{sleeps}'{older}'")).await.unwrap();
    let trimmed = ahead.conn.trim(&LIMITS).await.unwrap();
    assert_eq!((trimmed.passed, trimmed.gone), (1, 3));
    let ledger =
        format!("SELECT concat(round IS NULL, round_number) FROM tidewater.devices WHERE id = '{older}'");
    assert_eq!(one(&plain, &ledger).await, "f1", "a round that it does not know");
    assert_eq!(ahead.conn.trim(&LIMITS).await.unwrap().passed, 0, "once");
    // Whatever the clock says, it has settled since.
    plain.batch_execute("UPDATE item SET name = 'later' WHERE id = 2").await.unwrap();
    behind.pull(&plain).await;
    for device in [&behind, &ahead] {
        let settle = format!(
            "UPDATE tidewater.devices SET session = gen_random_uuid(), seen_at = now() - interval '1 minute' WHERE id = '{older}'"
        );
        plain.batch_execute(&settle).await.unwrap();
        assert_eq!(device.conn.trim(&LIMITS).await.unwrap().gone, 0);
    }
}

/// Rows that change places under a unique index that holds for some rows only, beside many for which it does not.
#[tokio::test]
async fn rows_change_places_under_a_partial_unique_index() {
    let postgres = "CREATE TABLE item (id int8 PRIMARY KEY, name text, n int8);
                    CREATE UNIQUE INDEX ON item (name) WHERE n = 1";
    let (_database, plain, mut device) = bench(ITEM, postgres).await;
    let row = |id: i64, name: &str, n: i64| [Int(id), text(name), Int(n)];
    let mut items = vec![device.insert("item", &row(1, "a", 1)), device.insert("item", &row(2, "b", 1))];
    items.extend((10..2010).map(|id| device.insert("item", &row(id, if id < 1010 { "x" } else { "y" }, 0))));
    assert_eq!(device.round(&items).await, []);
    let mut swapped = vec![
        device.update("item", &["name"], &row(1, "b", 1)),
        device.update("item", &["name"], &row(2, "a", 1)),
    ];
    // A thousand leave a value to which another thousand comes: not by all of their pairs.
    swapped.extend(
        (10..2010).map(|id| device.update("item", &["name"], &row(id, if id < 1010 { "y" } else { "x" }, 0))),
    );
    assert_eq!(device.round(&swapped).await, []);
    assert_eq!(one(&plain, "SELECT string_agg(name, '' ORDER BY id) FROM item WHERE n = 1").await, "ba");
    assert_eq!(one(&plain, "SELECT count(*) FROM item WHERE name = 'x' AND id >= 1010").await, "1000");
}
