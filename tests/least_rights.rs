//! A role that owns nothing in the cloud: what `cloud-sql` prints is enough to push, and to pull, and no more than that.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use std::process::{Command, Output};

use harness::{Bench, PATIENCE, here, run, statement, there, wait_for, wait_until_here, wait_until_there};
use serde_json::Value;
use tidewater::settings::Sources;
use tidewater::{Database, doctor};
use tidewater_test_support::shop::{self, Generator};
use tidewater_test_support::{shell, wait};
use tokio_postgres::Client;

/// A role that may log in, and nothing else.
const ROLE: &str = "a \"device\"";

struct Scene {
    bench: Bench,
    role: String,
    /// Who owns the database, and everything that is printed.
    owner: Client,
}

impl Scene {
    async fn new() -> Self {
        let bench = Bench::new().await;
        let admin = bench.cloud.connect_as_admin().await;
        let role = format!("{ROLE} of {}", bench.cloud.name);
        let quoted = format!("\"{}\"", role.replace('"', "\"\""));
        let login = format!("CREATE ROLE {quoted} LOGIN PASSWORD 'secret'");
        admin.batch_execute(&login).await.unwrap();
        // What everybody may do in older versions, nobody may here.
        let own = format!(
            "REVOKE ALL ON SCHEMA public FROM PUBLIC; ALTER SCHEMA public OWNER TO {}",
            bench.cloud.user
        );
        admin.batch_execute(&own).await.unwrap();
        let owner = bench.cloud.connect().await;
        owner
            .batch_execute("ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC")
            .await
            .unwrap();
        Self { bench, role, owner }
    }

    fn verb(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_run_supervisor"))
            .arg("--database")
            .arg(self.bench.path())
            .arg("cloud-sql")
            .args(arguments)
            .env("CLOUD_SQL_DATABASE", &self.bench.cloud.name)
            .env_remove("CLOUD_SQL_USER")
            .output()
            .unwrap()
    }

    /// What the verb prints.
    fn printed(&self, arguments: &[&str]) -> String {
        let output = self.verb(&[&["--role", &self.role], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The printed SQL, run by the owner of the database: twice, because it can be.
    async fn administer(&self, arguments: &[&str]) {
        for _ in 0..2 {
            let sql = self.printed(arguments);
            self.owner.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{error:?}\n{sql}"));
        }
    }

    fn settings(&self) -> Sources {
        self.bench.settings().set("cloud.user", &self.role).set("cloud.password", "secret")
    }

    async fn open(&self) -> Database {
        self.bench.open_with(self.settings()).await
    }

    /// What the role was granted on each of Tidewater's own tables, columns and functions.
    async fn rights(&self) -> String {
        let sql = "WITH ours AS (SELECT 'tidewater'::regnamespace AS oid), \
                   granted (what, acl) AS ( \
                       SELECT relname::text, relacl FROM pg_class, ours WHERE relnamespace = ours.oid \
                       UNION ALL \
                       SELECT relname || '.' || attname, attacl FROM pg_attribute JOIN pg_class c ON c.oid = attrelid, ours \
                       WHERE relnamespace = ours.oid \
                       UNION ALL \
                       SELECT proname || '()', proacl FROM pg_proc, ours WHERE pronamespace = ours.oid) \
                   SELECT string_agg(what || ' ' || privilege_type, ', ' ORDER BY what COLLATE \"C\", privilege_type) \
                   FROM granted, aclexplode(acl) AS one JOIN pg_roles r ON r.oid = one.grantee WHERE r.rolname = $1";
        self.owner.query_one(sql, &[&self.role]).await.unwrap().get(0)
    }

    /// How many things in the database are the role's own.
    async fn owned(&self) -> i64 {
        let sql = "SELECT count(*) FROM pg_shdepend d JOIN pg_roles r ON r.oid = d.refobjid WHERE d.deptype = 'o' AND r.rolname = $1";
        self.owner.query_one(sql, &[&self.role]).await.unwrap().get(0)
    }
}

/// What a role may do with Tidewater's own side, and no more.
const LEAST: &str = "changes SELECT, changes.origin UPDATE, conflicts INSERT, cursors INSERT, cursors SELECT, cursors UPDATE, \
                     devices INSERT, devices SELECT, devices UPDATE, feed SELECT, feed.one UPDATE, identity SELECT, \
                     register() EXECUTE, trim() EXECUTE";

async fn wait_until_pulled(db: &Database, scene: &Scene) {
    wait::until("nothing keeps it from pulling", PATIENCE, async || {
        let sync = db.status_summary().await.sync;
        if sync.state == "idle" { Ok(()) } else { Err(format!("{sync:?} {:#?}", scene.bench.log.all())) }
    })
    .await;
}

/// With the first part, everything goes up, and why nothing comes down is said once. With the second one, the same device
/// pulls. Nothing there is ever its own, and the doctor has nothing against it.
#[actix_rt::test]
async fn what_is_printed_is_enough_to_push_and_then_to_pull() {
    let scene = Scene::new().await;
    let db = scene.open().await;
    run(&db, shop::SCHEMA).await;
    let mut generator = Generator::new(5);
    let rows: Vec<_> = generator.statements(150).collect();
    for unit in rows.chunks(50) {
        db.write(unit.iter().cloned().map(statement)).await.unwrap();
    }
    scene.administer(&["--push-only"]).await;
    scene.bench.proxy.start();
    scene.bench.wait_until_equal(&db, shop::TABLES).await;
    let unseen = "table product: changes made by others are not seen, because its feed cannot be installed";
    assert_eq!(scene.bench.log.count(unseen), 1, "{:#?}", scene.bench.log.all());
    assert_eq!(db.status_summary().await.sync.parked, 0);

    // Updates and deletions as well, and again after a start.
    run(&db, "UPDATE product SET stock = 1;\nDELETE FROM \"SETTING\";\nDELETE FROM review").await;
    scene.bench.wait_until_equal(&db, shop::TABLES).await;
    db.shutdown().await.unwrap();

    assert_eq!(scene.rights().await, LEAST);
    // What somebody granted too much is taken back.
    let role = scene.role.replace('"', "\"\"");
    let all = format!("GRANT ALL ON ALL TABLES IN SCHEMA tidewater TO \"{role}\"");
    scene.owner.batch_execute(&all).await.unwrap();
    scene.administer(&[]).await;
    assert_eq!(scene.rights().await, LEAST);
    let db = scene.open().await;
    wait_until_pulled(&db, &scene).await;
    scene.owner.batch_execute("UPDATE product SET stock = 2; DELETE FROM stock_place").await.unwrap();
    wait_until_here(&db, "SELECT count(*) FROM product WHERE stock <> 2", "0").await;
    wait_until_here(&db, "SELECT count(*) FROM stock_place", "0").await;
    run(&db, "UPDATE product SET stock = 3").await;
    scene.bench.wait_until_equal(&db, shop::TABLES).await;
    assert_eq!(scene.owned().await, 0);
    wait_until_there(&db, &scene.owner, "SELECT done_at > '-infinity' FROM tidewater.feed", "true").await;
    db.shutdown().await.unwrap();

    let settings = scene.settings().build().unwrap();
    let report = std::thread::spawn(move || doctor::Doctor::new(settings).examine()).join().unwrap();
    for check in [doctor::Check::Rights, doctor::Check::Feed, doctor::Check::SchemaDrift] {
        let finding = report.finding(check).unwrap();
        assert_eq!(finding.mark, doctor::Mark::Green, "{finding:#?}");
    }
}

/// A role that was let in under the previous version, in whose cloud there is nowhere to say a version: it goes on, and says its own
/// when the administrator has run the script again. One that may write every column of the ledger but that one goes on, too.
#[actix_rt::test]
async fn a_role_that_may_not_say_its_version_goes_on() {
    let scene = Scene::new().await;
    let db = scene.open().await;
    run(&db, "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);\nINSERT INTO note VALUES (1, 'one')")
        .await;
    scene.administer(&[]).await;
    let previous =
        "ALTER TABLE tidewater.devices DROP COLUMN version; UPDATE tidewater.identity SET schema_version = 2";
    scene.owner.batch_execute(previous).await.unwrap();
    scene.bench.proxy.start();
    wait_until_there(&db, &scene.owner, "SELECT count(*) FROM note", "1").await;
    wait_until_pulled(&db, &scene).await;
    assert_eq!(there(&scene.owner, "SELECT schema_version FROM tidewater.identity").await, "2");

    scene.administer(&[]).await;
    assert_eq!(there(&scene.owner, "SELECT schema_version FROM tidewater.identity").await, "3");
    let said = "SELECT version FROM tidewater.devices";
    wait_until_there(&db, &scene.owner, said, env!("CARGO_PKG_VERSION")).await;
    assert_eq!(scene.rights().await, LEAST);

    let role = format!("\"{}\"", scene.role.replace('"', "\"\""));
    let by_column = format!(
        "REVOKE ALL ON tidewater.devices FROM {role};
         GRANT SELECT (id, session, round, round_number, left_out, registered_at, seen_at), INSERT (id, session),
               UPDATE (session, round, round_number, left_out, seen_at) ON tidewater.devices TO {role};
         UPDATE tidewater.devices SET version = 'not mine', session = gen_random_uuid()"
    );
    scene.owner.batch_execute(&by_column).await.unwrap();
    run(&db, "INSERT INTO note VALUES (2, 'two')").await;
    wait_until_there(&db, &scene.owner, "SELECT count(*) FROM note", "2").await;
    wait_until_pulled(&db, &scene).await;
    assert_eq!(there(&scene.owner, said).await, "not mine");
    assert_eq!(scene.bench.log.count("permission denied"), 0, "{:#?}", scene.bench.log.all());
    db.shutdown().await.unwrap();
}

/// Tables that are there already keep their types: the feed that is installed by hand is the one that a device would install, on
/// every partition, for a key of an unusual type, in a schema and under names that need quotes.
#[actix_rt::test]
async fn the_feed_by_hand_is_the_one_that_a_device_would_install() {
    let scene = Scene::new().await;
    scene
        .owner
        .batch_execute(
            r#"CREATE SCHEMA "The $q0$ Shop";
               CREATE TABLE "The $q0$ Shop"."it's" ("a ""key""" inet, n integer, body text, PRIMARY KEY ("a ""key""", n))
                   PARTITION BY LIST (n);
               CREATE TABLE "The $q0$ Shop".one PARTITION OF "The $q0$ Shop"."it's" FOR VALUES IN (1);
               CREATE TABLE "The $q0$ Shop"."the rest" PARTITION OF "The $q0$ Shop"."it's" DEFAULT"#,
        )
        .await
        .unwrap();
    let settings = || scene.settings().set("cloud.schema", "The $q0$ Shop");
    let db = scene.bench.open_with(settings()).await;
    run(
        &db,
        r#"CREATE TABLE "it's" ("a ""key""" TEXT, n INTEGER, body TEXT DEFAULT '$q1$;''', PRIMARY KEY ("a ""key""", n)) WITHOUT ROWID"#,
    )
    .await;
    run(&db, r#"INSERT INTO "it's" VALUES ('10.0.0.1', 1, 'up')"#).await;
    let config = scene.bench.folder.path().join("schema.toml");
    std::fs::write(&config, "[cloud]\nschema = \"The $q0$ Shop\"\n").unwrap();
    scene.administer(&["--config", config.to_str().unwrap()]).await;
    scene.bench.proxy.start();
    let up = r#"SELECT (SELECT body FROM "The $q0$ Shop"."it's" WHERE n = 1)"#;
    wait_until_there(&db, &scene.owner, up, "up").await;
    wait_until_pulled(&db, &scene).await;
    scene
        .owner
        .batch_execute(
            r#"UPDATE "The $q0$ Shop".one SET body = 'down'; INSERT INTO "The $q0$ Shop"."it's" VALUES ('10.0.0.0/8', 2, 'new')"#,
        )
        .await
        .unwrap();
    let all = r#"SELECT group_concat("a ""key""" || n || body) FROM (SELECT * FROM "it's" ORDER BY n)"#;
    wait_until_here(&db, all, "10.0.0.11down,10.0.0.0/82new").await;
    assert_eq!(scene.bench.log.count("cannot be installed"), 0, "{:#?}", scene.bench.log.all());
    assert_eq!(scene.owned().await, 0);
}

/// When the tables here grow, what the role may not do is said, the rest goes on, and the verb's next output mends it.
#[actix_rt::test]
async fn tables_that_grow_wait_for_the_administrator() {
    let scene = Scene::new().await;
    let db = scene.open().await;
    run(&db, "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);\nINSERT INTO note VALUES (1, 'one')")
        .await;
    scene.administer(&[]).await;
    scene.bench.proxy.start();
    wait_until_there(&db, &scene.owner, "SELECT count(*) FROM note", "1").await;

    run(&db, "CREATE TABLE child (id INTEGER PRIMARY KEY, note INTEGER REFERENCES note ON DELETE CASCADE)")
        .await;
    run(&db, "ALTER TABLE note ADD COLUMN more TEXT").await;
    run(&db, "CREATE TABLE other (id INTEGER PRIMARY KEY)").await;
    run(&db, "INSERT INTO note VALUES (2, 'two', 'more');\nINSERT INTO child VALUES (1, 2)").await;
    let said = |part: &'static str| {
        wait::until(part, PATIENCE, async || {
            let found = scene.bench.log.count(part);
            if found > 0 { Ok(()) } else { Err(format!("{:#?}", scene.bench.log.all())) }
        })
    };
    said("the column more cannot be added: must be owner of table note").await;
    said("table child is not synced, its rows stay pending: its cloud table cannot be created").await;
    wait_for(&db, "they wait", |status| status.sync.pending == 2 && status.sync.parked == 0).await;
    scene.administer(&[]).await;
    db.reset().await.unwrap();
    wait_until_there(&db, &scene.owner, "SELECT (SELECT more FROM note WHERE id = 2)", "more").await;
    wait_until_there(&db, &scene.owner, "SELECT count(*) FROM child", "1").await;
    scene.owner.batch_execute("DELETE FROM note WHERE id = 2").await.unwrap();
    wait_until_here(&db, "SELECT count(*) FROM child", "0").await;
    assert_eq!(here(&db, "SELECT count(*) FROM note"), "1");
    assert_eq!(there(&scene.owner, "SELECT count(*) FROM pg_constraint WHERE contype = 'f'").await, "1");
    assert_eq!(scene.owned().await, 0);
}

/// The verb reads a file that Tidewater has never opened and leaves nothing behind; the JSON has the parts one by one; who is
/// named by nobody is a usage error.
#[actix_rt::test]
async fn the_verb_needs_a_file_and_a_role_and_nothing_else() {
    let scene = Scene::new().await;
    shell::sqlite3_shell(
        scene.bench.path(),
        "CREATE TABLE note (id INTEGER PRIMARY KEY); CREATE TABLE loose (a)",
    );
    let output = scene.verb(&["--role", "app", "--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["role"], &json["schema"]), (&"app".into(), &"public".into()));
    assert_eq!(
        (&json["tables"], &json["local"]),
        (&serde_json::json!(["note"]), &serde_json::json!(["loose"]))
    );
    assert!(
        json["push"]
            .as_str()
            .unwrap()
            .contains("GRANT SELECT, INSERT, UPDATE, DELETE ON \"public\".\"note\" TO \"app\"")
    );
    assert!(json["pull"].as_str().unwrap().contains("tidewater_feed_insert"));
    assert!(scene.printed(&[]).contains("-- Table loose stays local: "));
    assert!(!scene.printed(&["--push-only"]).contains("tidewater_feed_insert"));
    assert_eq!(std::fs::read_dir(scene.bench.folder.path()).unwrap().count(), 1);
    assert_eq!(scene.verb(&[]).status.code(), Some(2));
    std::fs::remove_file(scene.bench.path()).unwrap();
    assert_eq!(scene.verb(&["--role", "app"]).status.code(), Some(1));
}

/// What is printed follows what is set for single tables: of one that is only pulled no more than to read it, no feed for one
/// that is only pushed, and nothing at all for one that stays local. It is enough, and the doctor agrees.
#[actix_rt::test]
async fn what_is_printed_follows_the_directions() {
    let scene = Scene::new().await;
    let tables: String = ["down", "flat", "own", "up"]
        .map(|name| format!("CREATE TABLE {name} (id INTEGER PRIMARY KEY, body TEXT);\n"))
        .concat();
    shell::sqlite3_shell(scene.bench.path(), &tables);
    scene
        .owner
        .batch_execute(
            "CREATE TABLE down (id bigint PRIMARY KEY, body text); INSERT INTO down VALUES (1, 'd')",
        )
        .await
        .unwrap();
    let config = scene.bench.folder.path().join("tables.toml");
    let text = "[tables.up]\ndirection = \"push\"\n[tables.down]\ndirection = \"pull\"\n[tables.own]\ndirection = \"none\"\n";
    std::fs::write(&config, text).unwrap();
    let arguments = ["--config", config.to_str().unwrap()];
    let sql = scene.printed(&arguments);
    assert!(sql.contains("-- Table own stays local: tables.own.direction is none.\n"), "{sql}");
    assert!(
        sql.contains("GRANT SELECT ON \"public\".\"down\"") && !sql.contains("\"public\".\"own\""),
        "{sql}"
    );
    scene.administer(&arguments).await;
    let covered = "SELECT string_agg(tgrelid::regclass::text, ' ' ORDER BY tgrelid::regclass::text) FROM pg_trigger WHERE tgname = 'tidewater_feed_insert'";
    assert_eq!(there(&scene.owner, covered).await, "down flat");

    let set = |settings: Sources| settings.config_file(&config);
    let db = scene.bench.open_with(set(scene.settings())).await;
    scene.bench.proxy.start();
    let all = ["down", "flat", "own", "up"]
        .map(|name| format!("INSERT INTO {name} VALUES (7, 'here')"))
        .join(";\n");
    run(&db, &all).await;
    wait_until_there(
        &db,
        &scene.owner,
        "SELECT (SELECT body FROM up) || (SELECT body FROM flat)",
        "herehere",
    )
    .await;
    wait_until_here(&db, "SELECT group_concat(id) FROM down", "1,7").await;
    scene.owner.batch_execute("UPDATE down SET body = 'd2'; UPDATE flat SET body = 'f2'").await.unwrap();
    wait_until_here(&db, "SELECT (SELECT body FROM flat) || (SELECT body FROM down WHERE id = 1)", "f2d2")
        .await;
    assert_eq!(there(&scene.owner, "SELECT count(*) FROM down").await, "1");
    assert_eq!(scene.bench.log.count("cannot be installed"), 0, "{:#?}", scene.bench.log.all());
    assert_eq!(scene.owned().await, 0);
    db.shutdown().await.unwrap();

    let settings = set(scene.settings()).build().unwrap();
    let report = std::thread::spawn(move || doctor::Doctor::new(settings).examine()).join().unwrap();
    assert!(report.is_good(), "{}", report.page(false));
    let tables = report.finding(doctor::Check::Tables).unwrap();
    assert!(
        tables.details.iter().any(|line| line.contains("own stays local: tables.own.direction is none")),
        "{tables:#?}"
    );
}
