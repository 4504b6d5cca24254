//! `/metrics`: everything that can be had without asking anybody twice, made anew for each scrape.
//!
//! Counters and histograms count since the process began; `rows_flushed`, `rows_warmed` since the file was made. What an
//! actor did not answer in time is left out: a zero would be taken for a counter that began anew.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, Accept};
use actix_web::web::{Data, Header};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeGaugeValue, MetricEncoder, NoLabelSet, prometheus_text, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use tidewater_actors::messages::{ActorReport, ProxyStatus, StatusSummary};
use tidewater_actors::timings::{Histogram, RoundEnd, Snapshot, Timings};

use super::{Shared, plain};
use crate::database::Database;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) async fn metrics(shared: Data<Shared>, accept: Option<Header<Accept>>) -> HttpResponse {
    let summary = shared.looks.fresh().await;
    let open = accept.is_some_and(|Header(accept)| prefers_open_metrics(&accept));
    let file = &shared.db.settings().sqlite.path;
    let mut log = file.clone().into_os_string();
    log.push("-wal");
    let scrape = Scrape {
        summary,
        file_bytes: size(file),
        wal_bytes: size(Path::new(&log)),
        histograms: Histograms::of(&shared.db),
    };
    let mut registry = Registry::with_prefix("tidewater");
    registry.register_collector(Box::new(scrape));
    let mut body = String::new();
    let (kind, encoded) = match open {
        true => (OPEN_METRICS, text::encode(&mut body, &registry)),
        false => (PROMETHEUS_TEXT, prometheus_text::encode(&mut body, &registry)),
    };
    match encoded {
        Ok(()) => HttpResponse::Ok().insert_header((header::CONTENT_TYPE, kind)).body(body),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// Prometheus asks for it first. Whoever does not name it gets the text that everything reads.
fn prefers_open_metrics(accept: &Accept) -> bool {
    let known = accept.ranked().into_iter().find_map(|kind| match kind.essence_str() {
        "application/openmetrics-text" => Some(true),
        "text/plain" | "text/*" | "*/*" => Some(false),
        _ => None,
    });
    known.unwrap_or(false)
}

fn size(path: &Path) -> u64 {
    // A log that is not there is empty.
    std::fs::metadata(path).map_or(0, |found| found.len())
}

/// Everything of one scrape.
#[derive(Debug)]
struct Scrape {
    summary: Arc<StatusSummary>,
    file_bytes: u64,
    wal_bytes: u64,
    histograms: Histograms,
}

#[derive(Debug)]
struct Histograms {
    write: Snapshot,
    read: Snapshot,
    rounds: [(RoundEnd, Snapshot); 3],
    propagation: Snapshot,
}

impl Histograms {
    fn of(db: &Database) -> Self {
        let Timings { write, read, round, propagation } = db.timings();
        let [write, read, propagation] = [write, read, propagation].map(Histogram::snapshot);
        Self { write, read, rounds: RoundEnd::ALL.map(|end| (end, round.of(end).snapshot())), propagation }
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        let StatusSummary { readiness, proxy, circuit, sync, actors, .. } = &*self.summary;

        let version = [("version", env!("CARGO_PKG_VERSION"))];
        page.0
            .encode_descriptor("build", "The version that runs", None, MetricType::Info)?
            .encode_info(&version)?;
        page.yes_no("ready", "Whether the process can do its job, as /readyz says", readiness.ready)?;

        page.yes_no("cloud_required", "Whether the cloud has to be available", proxy.proxy_required)?;
        let status = proxy.status.to_string();
        let statuses = ["available", "unavailable", "unknown"];
        page.state("proxy_status", "What is known of the proxy", "status", &statuses, &status)?;
        if actors.iter().any(|actor| actor.name == "ProxyWatcher" && actor.state == "running") {
            let available = proxy.status == ProxyStatus::Available;
            let help = "Whether PostgreSQL answers through the proxy, and is ours";
            page.yes_no("cloud_available", help, available)?;
            let help = "Whether the checks are paused until something listens";
            page.yes_no("proxy_checks_paused", help, proxy.paused)?;
            let failures = i64::from(proxy.consecutive_failures);
            page.gauge("proxy_consecutive_failures", "Failed checks in a row", None, &failures)?;
        }
        if let Some(at) = proxy.last_success {
            let help = "When PostgreSQL last answered, since 1970";
            page.gauge("proxy_last_success_timestamp", help, Some(&Unit::Seconds), &at)?;
        }

        if !circuit.state.is_empty() {
            let states = ["closed", "open", "half_open"];
            page.state(
                "circuit_state",
                "Whether calls to the cloud are made",
                "state",
                &states,
                &circuit.state,
            )?;
        }
        if !sync.state.is_empty() {
            let states = ["offline", "blocked", "warming", "flushing", "idle"];
            page.state("sync_state", "What the sync does", "state", &states, &sync.state)?;
            let pending = "Rows that the cloud has not seen, parked ones excluded";
            page.gauge("journal_pending_entries", pending, None, &gauged(sync.pending))?;
            let help = "What the entries of these rows take in the file, besides the rows themselves";
            page.gauge("journal_pending", help, Some(&Unit::Bytes), &gauged(sync.backlog.bytes))?;
            if let Some(age) = sync.backlog.oldest_age_s.or((sync.pending == 0).then_some(0.0)) {
                let help = "How long the row that has waited longest waits";
                page.gauge("journal_oldest_age", help, Some(&Unit::Seconds), &age)?;
            }
            page.gauge("parked_rows", "Rows that the cloud refuses", None, &gauged(sync.parked))?;
            let conflicts = "Values that lost a conflict, in the log";
            page.gauge("conflicts", conflicts, None, &gauged(sync.conflicts))?;
            page.counter("rows_flushed", "Rows that went to the cloud", sync.rows_flushed)?;
            page.counter("rows_warmed", "Rows that came from the cloud", sync.rows_warmed)?;
        }

        let help = "Whether the actor runs and answers";
        page.by_actor("actor_running", help, MetricType::Gauge, actors, |actor| {
            u64::from(actor.state == "running")
        })?;
        page.actor_states("actor_state", "What the actor does", actors)?;
        let help = "How often the actor was restarted";
        page.by_actor("actor_restarts", help, MetricType::Counter, actors, |actor| actor.restarts.into())?;
        let help = "How often the actor panicked";
        page.by_actor("actor_panics", help, MetricType::Counter, actors, |actor| actor.panics.into())?;

        let bytes = Some(&Unit::Bytes);
        page.gauge("sqlite_file", "The size of the SQLite file", bytes, &gauged(self.file_bytes))?;
        page.gauge("sqlite_wal", "The size of its write-ahead log", bytes, &gauged(self.wal_bytes))?;

        let Histograms { write, read, rounds, propagation } = &self.histograms;
        page.histogram("write_duration", "A write, from the call until it is on the disk", write)?;
        page.histogram("read_duration", "A read on the caller's own thread", read)?;
        let help = "A flush round, from the noted rows to its end, by what that was";
        page.rounds("flush_round_duration", help, rounds)?;
        let help = "A row, from the local write to the cloud's acknowledgement";
        page.histogram("propagation_delay", help, propagation)
    }
}

/// What does not fit is more than any file holds.
fn gauged(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: &impl EncodeGaugeValue,
    ) -> fmt::Result {
        self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?.encode_gauge(value)
    }

    fn yes_no(&mut self, name: &str, help: &str, yes: bool) -> fmt::Result {
        self.gauge(name, help, None, &i64::from(yes))
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.0
            .encode_descriptor(name, help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    /// One series for each state, of which one is 1: so that none has to be known in a query.
    fn state(&mut self, name: &str, help: &str, label: &str, states: &[&str], now: &str) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for state in states {
            metric.encode_family(&[(label, *state)])?.encode_gauge(&i64::from(*state == now))?;
        }
        Ok(())
    }

    /// The same for each actor.
    fn actor_states(&mut self, name: &str, help: &str, actors: &[ActorReport]) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for actor in actors {
            for state in ["running", "silent", "restarting", "ended"] {
                let labels = [("actor", actor.name.as_str()), ("state", state)];
                metric.encode_family(&labels)?.encode_gauge(&i64::from(state == actor.state))?;
            }
        }
        Ok(())
    }

    fn by_actor(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        actors: &[ActorReport],
        value: impl Fn(&ActorReport) -> u64,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, kind)?;
        for actor in actors {
            let labels = [("actor", actor.name.as_str())];
            let mut series = metric.encode_family(&labels)?;
            match kind {
                MetricType::Counter => series.encode_counter::<NoLabelSet, _, u64>(&value(actor), None)?,
                _ => series.encode_gauge(&gauged(value(actor)))?,
            }
        }
        Ok(())
    }

    fn rounds(&mut self, name: &str, help: &str, rounds: &[(RoundEnd, Snapshot)]) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (end, held) in rounds {
            encode(metric.encode_family(&[("outcome", end.as_str())])?, held)?;
        }
        Ok(())
    }

    fn histogram(&mut self, name: &str, help: &str, held: &Snapshot) -> fmt::Result {
        encode(self.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?, held)
    }
}

fn encode(mut series: MetricEncoder<'_>, held: &Snapshot) -> fmt::Result {
    series.encode_histogram::<NoLabelSet>(held.sum_s, held.count, &held.buckets, None)
}
