//! What being watched costs: sixty-four writers, with a Prometheus that scrapes `/metrics` each second and without one.
//!
//! Two per cent are less than what a shared disk varies by from one second to the next. So each round with a scraper is
//! compared with the two beside it, and the middle of many such ratios counts.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use actix_web::{App, HttpServer};

use super::{Ours, row};

const WRITERS: usize = 64;
const ROUND: Duration = Duration::from_secs(2);
/// With a scraper; between them, and at both ends, one without.
const ROUNDS: usize = 30;
const SCRAPE_EVERY: Duration = Duration::from_secs(1);

/// How many rows per second, and how much of a processor per row, with a scraper beside without.
pub(super) fn scraped() {
    let ours = Ours::new();
    let address = serve(&ours);
    let scraped = Arc::<AtomicBool>::default();
    let over = Arc::<AtomicBool>::default();
    let scraper = std::thread::spawn({
        let (scraped, over) = (scraped.clone(), over.clone());
        move || {
            let mut took = vec![];
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(SCRAPE_EVERY);
                if scraped.load(Ordering::Relaxed) {
                    took.push(scrape(address));
                }
            }
            took
        }
    });
    // Warms up.
    write_for(&ours, ROUND);
    let rounds: Vec<Wrote> = (0..=2 * ROUNDS)
        .map(|round| {
            scraped.store(round % 2 == 1, Ordering::Relaxed);
            write_for(&ours, ROUND)
        })
        .collect();
    over.store(true, Ordering::Relaxed);
    let mut took = scraper.join().unwrap();
    took.sort_unstable();
    println!(
        "\n64 writers, and a scrape of /metrics each second: {ROUNDS} rounds of {ROUND:?}, each beside its two neighbours"
    );
    for (what, unit, of) in [
        ("written", "rows/s", Wrote::rate as fn(&Wrote) -> f64),
        ("processor", "µs/row", Wrote::processor_us),
    ] {
        let alone = quartiles(rounds.iter().step_by(2).map(of).collect())[1];
        let ratios =
            rounds.windows(3).step_by(2).map(|three| 2.0 * of(&three[1]) / (of(&three[0]) + of(&three[2])));
        let [low, middle, high] = quartiles(ratios.collect());
        println!(
            "  {what:<10} {alone:>9.1} {unit} where nobody scrapes; scraped {middle:.3}x (half of the rounds {low:.3} to {high:.3})"
        );
    }
    println!("  a scrape   {:>9.1?} (median of {})", took[took.len() / 2], took.len());
}

/// What a round came to.
struct Wrote {
    rows: u64,
    took: Duration,
    /// Of all threads of this process.
    processor: Duration,
}

impl Wrote {
    fn rate(&self) -> f64 {
        self.rows as f64 / self.took.as_secs_f64()
    }

    fn processor_us(&self) -> f64 {
        self.processor.as_secs_f64() * 1e6 / self.rows as f64
    }
}

/// The middle one, and those that half of them are between.
fn quartiles(mut of: Vec<f64>) -> [f64; 3] {
    of.sort_unstable_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| of[of.len() * quarter / 4])
}

/// The processor time that this process has had, in the hundredths of a second in which the system counts it.
fn processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // The name of the program may be anything; what counts is behind it.
    let fields = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
    Duration::from_millis(fields.map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum())
}

/// The routes on a thread of their own, as the process has them.
fn serve(ours: &Ours) -> SocketAddr {
    let routes = tidewater::http::configure(&ours.db);
    let (listens, listening) = mpsc::channel();
    std::thread::spawn(move || {
        actix_rt::System::new().block_on(async move {
            let app = move || App::new().configure(routes.clone());
            let server = HttpServer::new(app).workers(1).disable_signals().bind("127.0.0.1:0").unwrap();
            listens.send(server.addrs()[0]).unwrap();
            server.run().await.unwrap();
        });
    });
    listening.recv().unwrap()
}

fn scrape(address: SocketAddr) -> Duration {
    let asked = Instant::now();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("tidewater_write_duration_seconds_count"));
    asked.elapsed()
}

fn write_for(ours: &Ours, time: Duration) -> Wrote {
    let (began, before) = (Instant::now(), processor());
    let written = Arc::<AtomicU64>::default();
    ours.runtime.block_on(async {
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| {
                let (db, next, written) = (ours.db.clone(), ours.next.clone(), written.clone());
                tokio::spawn(async move {
                    while began.elapsed() < time {
                        db.write([row(&next)]).await.unwrap();
                        written.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
    });
    Wrote { rows: written.load(Ordering::Relaxed), took: began.elapsed(), processor: processor() - before }
}
