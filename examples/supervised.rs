//! An app supervises an actor of its own with what supervises Tidewater's: a panic costs one answer, not the service.
//!
//! ```text
//! cargo run --example supervised                 panics itself over HTTP, and shows what happens
//! cargo run --example supervised -- 127.0.0.1:8080     serves: /visit counts, /panic panics, /status tells
//! ```

use std::time::Duration;

use actix::prelude::{Actor, Handler, Message};
use slog::{Logger, info};
use tidewater::settings::Settings;
use tidewater::supervision::{ChildSpec, Context, Handle, Intensity, Supervisor};
use tidewater::telemetry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Counts visits, until somebody breaks it.
struct Visitors {
    count: u64,
}

impl Actor for Visitors {
    type Context = Context<Self>;
}

#[derive(Message)]
#[rtype(result = "u64")]
enum Visit {
    Polite,
    Fatal,
}

impl Handler<Visit> for Visitors {
    type Result = u64;

    fn handle(&mut self, visit: Visit, _: &mut Self::Context) -> u64 {
        assert!(matches!(visit, Visit::Polite), "a visitor broke the counter at {}", self.count);
        self.count += 1;
        self.count
    }
}

/// Answers one request, whatever the actor does.
async fn answer(mut stream: TcpStream, visitors: Handle<Visitors>) -> std::io::Result<()> {
    let mut request = [0; 1024];
    let length = stream.read(&mut request).await?;
    let request = String::from_utf8_lossy(&request[..length]);
    let visit = |visit| async { visitors.ask(visit).await.map(|count| format!("visitor {count}\n")) };
    let answered = match request.split(' ').nth(1) {
        Some("/visit") => visit(Visit::Polite).await,
        Some("/panic") => visit(Visit::Fatal).await,
        _ => Ok(format!("{:#?}\n", visitors.report())),
    };
    let (status, body) = match answered {
        Ok(body) => ("200 OK", body),
        Err(unanswered) => ("503 Service Unavailable", format!("{unanswered}\n")),
    };
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).await
}

async fn serve(listener: TcpListener, visitors: Handle<Visitors>) {
    while let Ok((stream, _)) = listener.accept().await {
        actix_rt::spawn(answer(stream, visitors.clone()));
    }
}

/// What a client gets: the status and the body, on one line.
async fn get(address: std::net::SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().and_then(|line| line.split_once(' ')).map_or("", |(_, status)| status);
    Ok(format!("{status}: {}", body.trim_end()))
}

async fn demonstrate(address: std::net::SocketAddr, log: &Logger) -> std::io::Result<()> {
    for path in ["/visit", "/visit", "/panic", "/visit", "/visit"] {
        info!(log, "GET {path}: {}", get(address, path).await?);
        // The successor is there within a millisecond; a real client would just try again.
        actix_rt::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

#[actix_rt::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (log, _flushed_at_the_end) = telemetry::start(&Settings::builder().build()?.log);
    let visitors = Handle::new("Visitors");
    let supervision =
        Supervisor::new(Intensity { restarts_max: 3, within: Duration::from_secs(5) }, log.clone())
            .child(ChildSpec::new(&visitors, |_| Ok(Visitors { count: 0 })))
            .launch()
            .await?;

    let address = std::env::args().nth(1);
    let listener = TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:0")).await?;
    let at = listener.local_addr()?;
    info!(log, "http://{at}/visit, /panic, /status");
    if address.is_some() {
        serve(listener, visitors).await;
    } else {
        actix_rt::spawn(serve(listener, visitors.clone()));
        demonstrate(at, &log).await?;
        let report = visitors.report();
        info!(log, "{} restart, {} panic: {:?}", report.restarts, report.panics, report.last_panic);
    }
    supervision.shutdown().await;
    Ok(())
}
