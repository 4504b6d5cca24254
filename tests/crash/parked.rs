//! SIGKILL at what is done about a row that the cloud refuses: its cause is mended, somebody asks for another try, or gives it up.
//!
//! ```text
//! this test ─▶ itself as a child, one after the other on one file:
//!     open, look at what the last kill left, bring it to its end ─▶ a row is parked ─▶ one of the three ways, with a kill at a place
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;

use tidewater::{Database, Which};
use tidewater_test_support::compare;
use tokio_postgres::Client;

use crate::harness::{here, run, there};
use crate::points::{AUDIT, Opened, Place, REFUSED, arm, at_rest, points, variable};

/// What refuses rows besides the audited table's own check: something that is to be seen in no table.
const JUDGE: &str = "
    CREATE TABLE mood (is_bad boolean NOT NULL);
    INSERT INTO mood VALUES (true);
    CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.body = 'forbidden' AND (SELECT is_bad FROM mood) THEN
            RAISE check_violation USING MESSAGE = 'not today', CONSTRAINT = 'judged';
        END IF;
        RETURN NEW; END $$;
    CREATE TRIGGER judge BEFORE INSERT OR UPDATE ON note FOR EACH ROW EXECUTE FUNCTION judge()";

/// How a parked row ceases to be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// The cloud's table is mended.
    Mended,
    /// What the table does not show is mended, and somebody asks for another try.
    Asked,
    /// Somebody gives it up.
    Discarded,
}

impl Way {
    /// The histories take turns: where there are more places, one comes more often.
    const TURNS: [Self; 5] = [Self::Mended, Self::Discarded, Self::Asked, Self::Discarded, Self::Discarded];

    fn of(history: i64) -> Self {
        Self::TURNS[usize::try_from(history).unwrap() % Self::TURNS.len()]
    }

    /// The places that nobody else comes by, and those between them at which a row goes; with how often somebody does.
    fn places(self) -> &'static [(&'static str, u32)] {
        match self {
            Self::Mended => &[("writer.call.RetryMended", 1), ("writer.called.RetryMended", 1)],
            Self::Asked => &[("writer.call.RetryParked", 1), ("writer.called.RetryParked", 1)],
            Self::Discarded => &[
                // Before the row is given up, and after it.
                ("writer.call.GetDiscardable", 2),
                ("writer.called.GetDiscardable", 2),
                ("writer.call.ApplyPage", 1),
                ("writer.called.ApplyPage", 1),
            ],
        }
    }

    fn body(self) -> &'static str {
        if self == Self::Asked { "forbidden" } else { "refused" }
    }

    async fn go(self, db: &Database, cloud: &Client) {
        match self {
            Self::Mended => {
                cloud.batch_execute("ALTER TABLE note DROP CONSTRAINT note_body_check").await.unwrap();
                // Nobody knows: the next cycle looks, whatever it is for.
                db.flush().await.unwrap();
            }
            Self::Asked => {
                cloud.batch_execute("UPDATE mood SET is_bad = false").await.unwrap();
                db.retry_parked(Which::All).await.unwrap();
            }
            Self::Discarded => {
                let rows = db.parked(None, 0, 10).unwrap().rows;
                let ids: Vec<i64> = rows.into_iter().map(|row| row.id).collect();
                let discarded = db.discard_parked(ids.clone()).await.unwrap();
                assert_eq!((discarded.ids, discarded.refused), (ids, vec![]));
            }
        }
    }
}

/// Not a test of its own: what the others kill.
#[actix_rt::test]
#[ignore = "started by the others, in a process of its own"]
async fn child_with_a_parked_row() {
    let Ok(folder) = std::env::var("CRASH_FOLDER") else { return };
    let history: i64 = variable("CRASH_HISTORY").parse().unwrap();
    let (point, hit) = (variable("CRASH_POINT"), variable("CRASH_HIT").parse().unwrap());
    let _scenario = fail::FailScenario::setup();
    let Opened { path, db, log, cloud } = Opened::new(&folder).await;
    if history == 0 {
        run(&db, "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)").await;
        let receipt = run(&db, "INSERT INTO note VALUES (1, 'a')").await;
        db.synced(&receipt).await.unwrap();
        cloud.batch_execute(&format!("{AUDIT} {JUDGE}")).await.unwrap();
        return;
    }
    at_rest(&db, &log).await;
    if history > 1 {
        let before = history - 1;
        if here(&db, "SELECT count(*) FROM _tidewater_parked_1") == "1" {
            assert_ne!(Way::of(before), Way::Mended, "the table is mended, and yet the row is parked");
            is_parked(&db, &cloud, before).await;
            Way::of(before).go(&db, &cloud).await;
            at_rest(&db, &log).await;
        }
        has_gone(&db, &cloud, before).await;
        let differences = compare::tables_differ(&path, &cloud, "public", &["note"]).await;
        assert!(differences.is_empty(), "{differences:#?}");
    }
    let refuse = "ALTER TABLE note DROP CONSTRAINT IF EXISTS note_body_check; \
                  ALTER TABLE note ADD CHECK (body <> 'refused') NOT VALID; UPDATE mood SET is_bad = true";
    cloud.batch_execute(refuse).await.unwrap();
    let (id, body) = (REFUSED + history, Way::of(history).body());
    run(&db, &format!("INSERT INTO note VALUES ({id}, '{body}')")).await;
    at_rest(&db, &log).await;
    is_parked(&db, &cloud, history).await;
    arm(&point, hit);
    Way::of(history).go(&db, &cloud).await;
    at_rest(&db, &log).await;
}

/// The row is parked with everything that a person has to know of it, and nowhere else.
async fn is_parked(db: &Database, cloud: &Client, history: i64) {
    let (id, body) = (REFUSED + history, Way::of(history).body());
    let rows = db.parked(None, 0, 10).unwrap().rows;
    let [row] = rows.as_slice() else { panic!("{rows:#?}") };
    let values = serde_json::json!({ "id": id, "body": body });
    assert_eq!(
        (row.table.as_str(), &row.key["id"], row.values.as_ref()),
        ("note", &id.into(), Some(&values))
    );
    let constraint = if body == "refused" { "note_body_check" } else { "judged" };
    assert_eq!((row.sqlstate.as_deref(), row.constraint.as_deref()), (Some("23514"), Some(constraint)));
    assert!(!row.message.is_empty() && !row.edited && row.change == "insert", "{row:?}");
    assert_eq!(row.tries, 1, "{row:?}");
    assert_eq!(here(db, &format!("SELECT body FROM note WHERE id = {id}")), body);
    let told = there(cloud, &format!("SELECT count(*) FROM audit WHERE id = {id}")).await;
    assert_eq!(told, "0", "history {history}");
}

/// The row is in the cloud, once; or it was given up, is in neither, and what it held is in the log of both, once.
async fn has_gone(db: &Database, cloud: &Client, history: i64) {
    let (id, way) = (REFUSED + history, Way::of(history));
    let arrived = i32::from(way != Way::Discarded).to_string();
    let told = format!("SELECT count(*) FROM audit WHERE id = {id}");
    assert_eq!(there(cloud, &told).await, arrived, "{way:?}: what the cloud was told");
    assert_eq!(here(db, &format!("SELECT count(*) FROM note WHERE id = {id}")), arrived, "{way:?}");
    let refusals = "SELECT count(*) FROM _tidewater_refusals";
    assert_eq!(here(db, refusals), "0", "{way:?}: nothing is refused any more");
    let lost = i32::from(way == Way::Discarded).to_string();
    let local = format!(
        "SELECT count(*) FROM _tidewater_conflicts WHERE key = '[{id}]' AND local LIKE '%{}%'",
        way.body()
    );
    assert_eq!(here(db, &local), lost, "{way:?}: the log here");
    let in_cloud = format!(
        "SELECT count(*) FROM tidewater.conflicts WHERE key::text = '[{id}]' AND local::text LIKE '%{}%'",
        way.body()
    );
    assert_eq!(there(cloud, &in_cloud).await, lost, "{way:?}: the log there");
}

/// Kills at each of the places each time that somebody comes by, so many times at most.
async fn kill(places: impl Fn(Way) -> Vec<(String, u32)>) -> BTreeMap<String, u32> {
    let place = Place::new("parked::child_with_a_parked_row").await;
    assert!(!place.life(0, "", 0, false));
    let mut plans: BTreeMap<Way, _> = Way::TURNS.map(|way| (way, (places(way).into_iter(), None))).into();
    let (mut history, mut kills) = (0, BTreeMap::new());
    while plans.values().any(|(left, now)| left.len() > 0 || now.is_some()) {
        history += 1;
        let Some((left, now)) = plans.get_mut(&Way::of(history)) else { continue };
        if now.is_none() {
            *now = left.next().map(|(point, most)| (point, 1, most));
        }
        let Some((point, hit, most)) = now else {
            assert!(!place.life(history, "nowhere", 1, false));
            continue;
        };
        if place.life(history, point, *hit, false) {
            *kills.entry(point.clone()).or_default() += 1;
            *hit += 1;
        } else {
            *most = 0;
        }
        if hit > most {
            *now = None;
        }
    }
    // The last one is examined, too.
    history += 1;
    assert!(!place.life(history, "nowhere", 1, false));
    let mut told = String::new();
    for (point, kills) in &kills {
        write!(told, " {point} {kills},").unwrap();
    }
    eprintln!("{history} histories, {} kills:{told}", kills.values().sum::<u32>());
    kills
}

/// Killed while a parked row is tried again, because the cloud's table was mended or somebody asked, and while it is given up: it
/// is still parked, with everything that is known of it, or done with, once; asking again brings it to its end, and where the table
/// was mended nobody has to ask.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_what_is_done_about_a_parked_row_it_is_done_once() {
    let places = |way: Way| way.places().iter().map(|(place, most)| ((*place).to_owned(), *most)).collect();
    let kills = kill(places).await;
    let expected = Way::TURNS.iter().flat_map(|way| places(*way)).collect();
    assert_eq!(kills, expected, "nobody came by");
}

/// The same at every place that somebody comes by on these ways.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn killed_at_any_place_beside_a_parked_row_it_is_done_once() {
    kill(|_| points().into_iter().map(|point| (point, u32::MAX)).collect()).await;
}
