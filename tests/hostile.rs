//! Behind the endpoint is a server that means harm, from the beginning or after it was a good one. The app's reads and writes do
//! not notice, the log has a line, nobody is hammered, memory has a bound, and when a right server takes its place all goes on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod harness;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::{Bench, PATIENCE, here, run, wait_until_flushed, wait_until_here};
use tidewater::Database;
use tidewater_test_support::hostile::{Talk, error, message, row};
use tidewater_test_support::{HostileServer, wait};

/// The longest wait between two attempts in these scenes.
const LONGEST_S: f64 = 1.0;

struct Scene {
    bench: Bench,
    server: HostileServer,
    db: Database,
}

impl Scene {
    async fn open(script: impl Fn(&mut Talk) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let bench = Bench::new().await;
        let server = HostileServer::start(script);
        let settings = bench
            .settings()
            .set("proxy.port", server.port())
            .set("proxy.retry_delay_s", 0.2)
            .set("proxy.max_retry_delay_s", LONGEST_S)
            .set("proxy.timeout_s", 10)
            .set("cloud.statement_timeout_s", 20);
        let db = bench.open_with(settings).await;
        run(&db, "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)").await;
        Self { bench, server, db }
    }

    fn postgresql(&self) -> SocketAddr {
        (std::net::Ipv4Addr::LOCALHOST, self.bench.cloud.port).into()
    }

    fn lines(&self) -> Vec<String> {
        let lines = self.bench.log.all();
        lines.into_iter().filter(|line| line.starts_with("ERRO") || line.starts_with("WARN")).collect()
    }

    /// The app goes on for so long: each write and each read is quick.
    async fn goes_on(&self, how_long: Duration) {
        let began = Instant::now();
        let mut slowest = Duration::ZERO;
        while began.elapsed() < how_long {
            let now = Instant::now();
            run(&self.db, "INSERT INTO note (body) VALUES ('here')").await;
            here(&self.db, "SELECT count(*) FROM note");
            slowest = slowest.max(now.elapsed());
            actix_rt::time::sleep(Duration::from_millis(20)).await;
        }
        println!("slowest write and read: {slowest:?}");
        assert!(slowest < Duration::from_secs(3), "{slowest:?}: {:#?}", self.bench.log.all());
    }

    /// A right server takes the place: what waited arrives, by itself.
    async fn recovers(self) {
        let postgresql = self.postgresql();
        self.server.play(move |talk| talk.forward(postgresql));
        run(&self.db, "INSERT INTO note (body) VALUES ('at last')").await;
        wait_until_flushed(&self.db).await;
        let client = self.bench.cloud.connect().await;
        wait::until("everything to be there", PATIENCE, async || {
            let counted: i64 = client.query_one("SELECT count(*) FROM note", &[]).await.unwrap().get(0);
            let ours: i64 = here(&self.db, "SELECT count(*) FROM note").parse().unwrap();
            if counted == ours { Ok(()) } else { Err(format!("{counted} there, {ours} here")) }
        })
        .await;
        self.db.shutdown().await.unwrap();
    }
}

/// What this process has in memory, at most, from now until it is asked.
struct Peak {
    before: u64,
    most: std::thread::JoinHandle<u64>,
    over: Arc<AtomicBool>,
}

impl Peak {
    fn watch() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let until = over.clone();
        let most = std::thread::spawn(move || {
            let mut most = 0;
            while !until.load(Ordering::Relaxed) {
                most = most.max(resident());
                std::thread::sleep(Duration::from_millis(2));
            }
            most
        });
        Self { before: resident(), most, over }
    }

    fn grown(self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.most.join().unwrap().saturating_sub(self.before)
    }
}

/// In bytes.
fn resident() -> u64 {
    let pages: u64 =
        std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// How many connections are enough for so long, where one attempt per longest wait may be made by whoever checks and by whoever
/// syncs.
fn allowed(within: Duration) -> u64 {
    let waits = within.as_secs_f64() / LONGEST_S;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a handful")]
    let waits = waits as u64;
    2 * (waits + 1) + 2
}

/// From the beginning: one error line, seldom asked again, and neither reads nor writes wait.
#[actix_rt::test]
async fn a_hostile_server_is_one_line_and_no_trouble() {
    let notices = |talk: &mut Talk| {
        talk.hear_startup()?;
        talk.raw(&message(b'R', &[0; 4]))?;
        talk.forever(&message(b'N', &error("00000", &[b'x'; 1000])))
    };
    let rows = |talk: &mut Talk| {
        talk.log_in()?;
        talk.prepare(&[("there", 16)])?;
        talk.begin_rows()?;
        talk.forever(&row(&[b"\x01"]))
    };
    let garbage = |talk: &mut Talk| {
        talk.log_in()?;
        talk.hear_request()?;
        talk.forever(b"\xff\x00\x1b[2J")
    };
    type Step = fn(&mut Talk) -> io::Result<()>;
    for (what, script) in [("notices", notices as Step), ("rows", rows), ("garbage", garbage)] {
        let scene = Scene::open(script).await;
        let (began, peak) = (Instant::now(), Peak::watch());
        wait::until("the line", PATIENCE, async || {
            let lines = scene.lines();
            if lines.iter().any(|line| line.contains("as PostgreSQL does")) {
                Ok(())
            } else {
                Err(format!("{lines:#?}"))
            }
        })
        .await;
        scene.goes_on(Duration::from_secs(3)).await;
        let (attempts, within, grown) = (scene.server.accepted(), began.elapsed(), peak.grown());
        println!("{what}: {attempts} attempts within {within:?}, {} MiB more", grown >> 20);
        assert!(
            attempts <= allowed(within),
            "{attempts} attempts within {within:?}: {:#?}",
            scene.bench.log.all()
        );
        assert!(grown < 64 << 20, "{grown} bytes more");
        let lines = scene.lines();
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert!(lines[0].chars().all(|c| !c.is_control()), "{lines:#?}");
        scene.recovers().await;
    }
}

/// A round is answered with values of other types than it asks for: the syncer takes it for what it is, and goes on as soon as the
/// answers are right; nothing is sent twice.
#[actix_rt::test]
async fn a_round_that_is_answered_with_other_types_ends_no_actor() {
    const TEXT: u32 = 25;
    let scene = Scene::open(|_: &mut Talk| Ok(())).await;
    let postgresql = scene.postgresql();
    scene.server.play(move |talk| talk.forward(postgresql));
    run(&scene.db, "INSERT INTO note (id, body) VALUES (1, 'first'), (2, 'second'), (3, 'third')").await;
    wait_until_flushed(&scene.db).await;
    let client = scene.bench.cloud.connect().await;
    // So that a deletion is asked about: it causes more than it was sent for.
    client
        .batch_execute(
            "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN UPDATE note SET body = body || '.' WHERE id = 3; RETURN NULL; END $$; \
             CREATE TRIGGER touch AFTER DELETE ON note FOR EACH ROW EXECUTE FUNCTION touch()",
        )
        .await
        .unwrap();
    for (column, sql) in [
        ("altered", "UPDATE note SET body = 'again' WHERE id = 1"),
        ("marked", "UPDATE note SET body = 'and again' WHERE id = 1"),
        ("tbl", "DELETE FROM note WHERE id = 2"),
    ] {
        let known = scene.lines().len();
        let altered = Arc::new(AtomicBool::new(false));
        let seen = altered.clone();
        scene.server.play(move |talk| {
            let seen = seen.clone();
            talk.relay(postgresql, move |talk, kind, body| match kind {
                b'T' => {
                    let other = retyped(body, column, TEXT);
                    seen.fetch_or(other.is_some(), Ordering::SeqCst);
                    talk.say(kind, other.as_deref().unwrap_or(body))
                }
                _ => talk.say(kind, body),
            })
        });
        run(&scene.db, sql).await;
        wait::until("an answer of another type", PATIENCE, async || match altered.load(Ordering::SeqCst) {
            true => Ok(()),
            false => Err(format!("{:#?}", scene.bench.log.all())),
        })
        .await;
        scene.goes_on(Duration::from_secs(2)).await;
        let lines = scene.lines();
        assert!(!lines[known..].iter().any(|line| line.contains("panic")), "{lines:#?}");
        let actors = scene.db.status_summary().await.actors;
        assert!(actors.iter().all(|actor| actor.restarts == 0), "{actors:?} {:#?}", scene.bench.log.all());
        scene.server.play(move |talk| talk.forward(postgresql));
        wait_until_flushed(&scene.db).await;
    }
    scene.recovers().await;
}

/// A description of rows with another type for this column, if it has that.
fn retyped(body: &[u8], column: &str, kind: u32) -> Option<Vec<u8>> {
    let name = [column.as_bytes(), b"\0"].concat();
    let at = body.windows(name.len()).position(|part| part == name)? + name.len() + 6;
    let mut body = body.to_vec();
    body.get_mut(at..at + 4)?.copy_from_slice(&kind.to_be_bytes());
    Some(body)
}

/// In the middle of a pull a row is repeated without end; or the answer is nonsense. The next attempts ask for fewer rows, the log
/// says why nothing comes, and it comes when the line is clean again.
#[actix_rt::test]
async fn rows_without_end_in_a_pull_are_not_kept() {
    const MARK: &[u8] = b"to be repeated";
    let is_marked = |body: &[u8]| body.windows(MARK.len()).any(|part| part == MARK);
    let scene = Scene::open(|_: &mut Talk| Ok(())).await;
    let postgresql = scene.postgresql();
    scene.server.play(move |talk| talk.forward(postgresql));
    run(&scene.db, "INSERT INTO note (body) VALUES ('first')").await;
    wait_until_flushed(&scene.db).await;
    let client = scene.bench.cloud.connect().await;
    for (id, long) in [(10_001, false), (20_001, true)] {
        let known = scene.lines().len();
        scene.server.play(move |talk| {
            talk.relay(postgresql, |talk, kind, body| match kind {
                b'D' if is_marked(body) && long => talk.forever(&message(kind, body)),
                b'D' if is_marked(body) => talk.forever(b"\0\0\0\0"),
                _ => talk.say(kind, body),
            })
        });
        let body = format!("to be repeated{}", if long { "x".repeat(10_000) } else { String::new() });
        client
            .execute("INSERT INTO note (id, body) VALUES ($1, $2)", &[&i64::from(id), &body])
            .await
            .unwrap();
        let (began, before, peak) = (Instant::now(), scene.server.accepted(), Peak::watch());
        wait::until("the line", PATIENCE * 2, async || {
            let lines = scene.lines();
            let told = lines[known..].iter().any(|line| line.contains("Sync is"));
            if told { Ok(()) } else { Err(format!("{:#?}", scene.bench.log.all())) }
        })
        .await;
        scene.goes_on(Duration::from_secs(3)).await;
        let (attempts, within) = (scene.server.accepted() - before, began.elapsed());
        let grown = peak.grown();
        println!(
            "{attempts} attempts within {within:?}, {} MiB more; {:#?}",
            grown >> 20,
            &scene.lines()[known..]
        );
        // Nine of them until one row is asked for.
        assert!(
            attempts <= allowed(within) + 9,
            "{attempts} within {within:?}: {:#?}",
            scene.bench.log.all()
        );
        assert!(grown < 64 << 20, "{grown} bytes more");
        scene.server.play(move |talk| talk.forward(postgresql));
        let sql = format!("SELECT coalesce(max(length(body)), 0) FROM note WHERE id = {id}");
        wait_until_here(&scene.db, &sql, &body.len().to_string()).await;
    }
    scene.recovers().await;
}
