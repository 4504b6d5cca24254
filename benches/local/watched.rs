//! What being watched costs: sixty-four writers, with a Prometheus that scrapes `/metrics` each second and without one.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use actix_web::{App, HttpServer};

use super::{Ours, row};

const WRITERS: usize = 64;
const ROUND: Duration = Duration::from_secs(3);
/// Of each kind, in turns.
const ROUNDS: usize = 10;
const SCRAPE_EVERY: Duration = Duration::from_secs(1);

/// Rows per second with and without, and the ratio.
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
    let mut rates = [vec![], vec![]];
    for round in 0..=2 * ROUNDS {
        let watched = round % 2;
        scraped.store(watched == 1, Ordering::Relaxed);
        let rate = write_for(&ours, ROUND);
        // The first round warms up.
        if round > 0 {
            rates[watched].push(rate);
        }
    }
    over.store(true, Ordering::Relaxed);
    let mut took = scraper.join().unwrap();
    took.sort_unstable();
    let [alone, watched] = rates.map(|mut rates| {
        rates.sort_unstable_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    println!(
        "\n64 writers, and a scrape of /metrics each second ({ROUNDS} rounds of {ROUND:?} each, in turns)"
    );
    println!("  nobody scrapes  {alone:>9.0} rows/s");
    println!("  scraped         {watched:>9.0} rows/s  {:.3}x", watched / alone);
    println!("  a scrape        {:>9.1?} (median of {})", took[took.len() / 2], took.len());
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

/// Rows per second.
fn write_for(ours: &Ours, time: Duration) -> f64 {
    let began = Instant::now();
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
    written.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64()
}
