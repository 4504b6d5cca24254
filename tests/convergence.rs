//! Devices that work apart, and plain SQL between them, end with the same rows.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod harness;

use harness::{Bench, batch, statement, wait_for};
use tidewater::Database;
use tidewater_test_support::shop::{self, Generator};
use tidewater_test_support::{FaultProxy, compare, wait};

struct Device {
    db: Database,
    proxy: FaultProxy,
    path: std::path::PathBuf,
    generator: Generator,
}

impl Device {
    async fn new(bench: &Bench, n: u64, seed: u64) -> Self {
        let proxy = FaultProxy::reserve(tidewater_test_support::Postgres::shared().address());
        let path = bench.folder.path().join(format!("device-{n}.db"));
        let settings = bench
            .settings()
            .set("sqlite.path", path.display())
            .set("proxy.port", proxy.port())
            .set("sync.window_rows_max", 50 + 40 * n)
            .set("sync.page_rows_max", 60);
        let db = bench.open_with(settings).await;
        db.write(batch(shop::SCHEMA)).await.unwrap();
        Self { db, proxy, path, generator: Generator::new(seed * 10 + n) }
    }

    /// Works on its own file, as it is now.
    async fn work(&mut self, statements: usize) {
        let connection = rusqlite::Connection::open(&self.path).unwrap();
        let churn = self.generator.churn(&connection, statements);
        drop(connection);
        for stmt in churn {
            // What came from the cloud meanwhile may stand against it; the app would hear of it.
            let _ = self.db.write([statement(stmt)]).await;
        }
    }

    fn violations(&self) -> Vec<String> {
        self.db
            .read(|conn| {
                conn.prepare("SELECT \"table\" || ' ' || coalesce(rowid, '') || ' -> ' || parent FROM pragma_foreign_key_check")?
                    .query_map([], |row| row.get(0))?
                    .collect()
            })
            .unwrap()
    }
}

async fn history(seed: u64) {
    let bench = Bench::new().await;
    let mut devices = vec![Device::new(&bench, 0, seed).await, Device::new(&bench, 1, seed).await];
    for device in &mut devices {
        let rows: Vec<_> = device.generator.statements(250).collect();
        for unit in rows.chunks(50) {
            device.db.write(unit.iter().cloned().map(statement)).await.unwrap();
        }
        device.proxy.start();
    }
    let client = bench.cloud.connect().await;
    for round in 0..4u64 {
        for device in &mut devices {
            let apart = !(seed + round).is_multiple_of(3);
            if apart {
                device.proxy.stop();
            }
            device.work(25).await;
            if apart {
                if (seed + round).is_multiple_of(2) {
                    device.proxy.cut_client_to_server_after(4_000 + 700 * round);
                }
                device.proxy.start();
            }
        }
        // Plain SQL in between.
        let _ = client
            .batch_execute(
                "UPDATE product SET stock = coalesce(stock, 0) + 1 WHERE sku IN (SELECT sku FROM product ORDER BY random() LIMIT 10);
                 DELETE FROM review WHERE id IN (SELECT id FROM review ORDER BY random() LIMIT 3)",
            )
            .await;
    }
    for device in &devices {
        device.proxy.clear_hooks();
    }
    wait::until(&format!("everything to be equal, seed {seed}"), harness::PATIENCE * 2, async || {
        let mut said = vec![];
        for device in &devices {
            let sync = device.db.status_summary().await.sync;
            let differences = compare::tables_differ(&device.path, &client, "public", shop::TABLES).await;
            if sync.pending > 0 || !differences.is_empty() {
                said.push(format!("{sync:?} {:#?}", differences.iter().take(6).collect::<Vec<_>>()));
            }
        }
        if said.is_empty() { Ok(()) } else { Err(format!("{said:#?}\n{:#?}", bench.log.all())) }
    })
    .await;
    for device in &devices {
        assert_eq!(device.violations(), Vec::<String>::new(), "seed {seed}");
        wait_for(&device.db, "it is quiet", |status| status.sync.state == "idle").await;
        device.db.shutdown().await.unwrap();
    }
}

/// A few histories in every run; `TIDEWATER_SEED` names one, `TIDEWATER_HISTORIES` how many.
#[actix_rt::test]
async fn two_devices_and_plain_sql_converge() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let first = number("TIDEWATER_SEED", 1);
    for seed in first..first + number("TIDEWATER_HISTORIES", 3) {
        history(seed).await;
    }
}
