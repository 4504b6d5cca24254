//! What another program does to the schema while the writer waits for its lock.

#![cfg(feature = "failpoints")]
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use rusqlite::Connection;
use tidewater_actors::sqlite::{Statement, Store, StoreOptions, Unit, UpkeepOptions};

/// A table that is made anew while the writer waits for the lock has its triggers again before the waiting units write it: what
/// they delete is a deletion, alone and in a group.
#[test]
fn who_waited_for_the_lock_writes_a_tracked_table() {
    for others in [0, 2] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        let sql = "CREATE TABLE t (id INTEGER PRIMARY KEY, a); INSERT INTO t VALUES (1,1),(2,2)";
        let foreign = Connection::open(&path).unwrap();
        foreign.execute_batch(sql).unwrap();
        let options = StoreOptions {
            path: path.clone(),
            busy_timeout: Duration::from_secs(10),
            read_pool_max: 1,
            upkeep: UpkeepOptions::default(),
        };
        let (mut store, _) = Store::open(&options).unwrap();
        let entries = |store: &mut Store| {
            let id = store.tables().unwrap().1[0].id;
            let sql = format!(
                "SELECT coalesce(group_concat(k0 || ':' || whole, ' '), '') FROM _tidewater_journal_{id}"
            );
            Connection::open(&path).unwrap().query_row(&sql, [], |row| row.get::<_, String>(0)).unwrap()
        };
        foreign.execute_batch("DELETE FROM _tidewater_journal_1").unwrap();
        // The last moment before the lock is the writer's.
        let again = path.clone();
        fail::cfg_callback("sqlite.begin", move || {
            fail::remove("sqlite.begin");
            let rebuild =
                "BEGIN IMMEDIATE; CREATE TABLE n (id INTEGER PRIMARY KEY, a); INSERT INTO n SELECT * FROM t;
                           DROP TABLE t; ALTER TABLE n RENAME TO t; COMMIT";
            Connection::open(&again).unwrap().execute_batch(rebuild).unwrap();
        })
        .unwrap();
        let mut units = vec![Unit::new([Statement::new("DELETE FROM t WHERE id = 1")])];
        units.extend((0..others).map(|_| Unit::new([Statement::new("UPDATE t SET a = 3 WHERE id = 2")])));
        assert!(store.write_group(&units).iter().all(Result::is_ok));
        assert_eq!(entries(&mut store), "1:2 2:1");
        let notices = store.track().unwrap();
        assert!(notices.len() == 1 && notices[0].0.contains("compared with the cloud"), "{notices:?}");
    }
}
