//! `/events`: the state, and then what changes of it, as server-sent events.
//!
//! Nothing is kept for a subscriber but what it was told last: one that is slow is told less often, and then how it is, not
//! how it was. One that does not read at all holds what fits into its connection, until the connection is given up.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::time::Duration;

use actix_web::http::header;
use actix_web::http::{Method, StatusCode};
use actix_web::web::{Bytes, Data};
use actix_web::{HttpRequest, HttpResponse};
use futures_util::stream::{self, Stream};
use serde_json::{Value, json};
use tidewater_actors::messages::{AvailabilityChanged, StatusSummary};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until};

use super::{Shared, plain};

/// Between two looks at what is not announced: the circuit, the sync, the counts.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A comment after so much silence shows that the connection works, and whether somebody is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A client that lost its connection comes back after this.
const RETRY: Duration = Duration::from_secs(2);

pub(super) async fn events(request: HttpRequest, shared: Data<Shared>) -> HttpResponse {
    let mut answer = HttpResponse::Ok();
    answer.insert_header((header::CONTENT_TYPE, "text/event-stream"));
    if request.method() == Method::HEAD {
        return answer.finish();
    }
    let Ok(place) = shared.subscribers.clone().try_acquire_owned() else {
        let mut full =
            plain(StatusCode::SERVICE_UNAVAILABLE, "http.subscribers_max follow the events already");
        full.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("10"));
        return full;
    };
    answer.streaming(Subscriber::new(shared, place).events())
}

/// One that follows, with what it was told last.
struct Subscriber {
    shared: Data<Shared>,
    availability: watch::Receiver<AvailabilityChanged>,
    told: Told,
    next_look: Instant,
    keep_alive: Instant,
    begun: bool,
    _place: OwnedSemaphorePermit,
}

impl Subscriber {
    fn new(shared: Data<Shared>, place: OwnedSemaphorePermit) -> Self {
        let mut availability = shared.db.availability();
        availability.mark_changed();
        let now = Instant::now();
        let told = Told::default();
        Self { shared, availability, told, next_look: now, keep_alive: now, begun: false, _place: place }
    }

    fn events(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        stream::unfold(self, |mut subscriber| async move {
            let text = subscriber.next().await?;
            Some((Ok(Bytes::from(text)), subscriber))
        })
    }

    /// What there is to tell next; nothing when the database is shut down.
    async fn next(&mut self) -> Option<String> {
        if !std::mem::replace(&mut self.begun, true) {
            self.keep_alive = Instant::now() + KEEP_ALIVE;
            return Some(format!("retry: {}\n\n", RETRY.as_millis()));
        }
        loop {
            let mut text = String::new();
            tokio::select! {
                biased;
                changed = self.availability.changed() => {
                    changed.ok()?;
                    let changed = *self.availability.borrow_and_update();
                    event(&mut text, "availability", Some(changed.epoch), &availability(changed));
                }
                () = sleep_until(self.next_look) => {
                    let summary = self.shared.looks.leisurely(LOOK_EVERY / 2).await;
                    self.next_look = Instant::now() + LOOK_EVERY;
                    self.told.tell(&mut text, &summary);
                }
                () = sleep_until(self.keep_alive) => text.push_str(": nothing new\n\n"),
            }
            if !text.is_empty() {
                self.keep_alive = Instant::now() + KEEP_ALIVE;
                return Some(text);
            }
        }
    }
}

/// What a subscriber knows, by event.
#[derive(Debug, Default)]
struct Told {
    circuit: Value,
    sync: Value,
    counts: Value,
}

impl Told {
    /// Adds an event for each part that is another one now.
    fn tell(&mut self, text: &mut String, summary: &StatusSummary) {
        let StatusSummary { circuit, sync, .. } = summary;
        // An actor that did not answer says nothing, which is no news of what it does.
        let news = [
            (!circuit.state.is_empty()).then(|| {
                ("circuit", &mut self.circuit, json!({ "state": circuit.state, "reason": circuit.reason }))
            }),
            (!sync.state.is_empty())
                .then(|| ("sync", &mut self.sync, json!({ "state": sync.state, "detail": sync.detail }))),
            (!sync.state.is_empty()).then(|| {
                let counts =
                    json!({ "pending": sync.pending, "parked": sync.parked, "conflicts": sync.conflicts });
                ("counts", &mut self.counts, counts)
            }),
        ];
        for (name, told, now) in news.into_iter().flatten() {
            if *told != now {
                event(text, name, None, &now);
                *told = now;
            }
        }
    }
}

fn availability(changed: AvailabilityChanged) -> Value {
    let AvailabilityChanged { epoch, status, class } = changed;
    json!({ "epoch": epoch, "status": status, "reason": class.map(|class| class.in_words()) })
}

/// JSON has no line breaks of its own, so that one line holds it.
fn event(text: &mut String, name: &str, id: Option<u64>, data: &Value) {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    // Writing to a text does not fail.
    let _ = write!(text, "event: {name}\n{id}data: {data}\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What has not changed is not told again, and an actor that is silent is not taken for one that has done nothing.
    #[test]
    fn only_what_changed_is_told() {
        let mut told = Told::default();
        let mut tell = |summary: &StatusSummary| {
            let mut text = String::new();
            told.tell(&mut text, summary);
            text
        };
        let mut summary = StatusSummary::default();
        assert_eq!(tell(&summary), "", "nobody has answered yet");
        summary.circuit.state = "closed".to_owned();
        summary.sync.state = "idle".to_owned();
        assert_eq!(
            tell(&summary),
            "event: circuit\ndata: {\"reason\":null,\"state\":\"closed\"}\n\n\
             event: sync\ndata: {\"detail\":null,\"state\":\"idle\"}\n\n\
             event: counts\ndata: {\"conflicts\":0,\"parked\":0,\"pending\":0}\n\n"
        );
        assert_eq!(tell(&summary), "");
        summary.sync.pending = 3;
        summary.sync.detail = Some("two\nlines".to_owned());
        assert_eq!(
            tell(&summary),
            "event: sync\ndata: {\"detail\":\"two\\nlines\",\"state\":\"idle\"}\n\n\
             event: counts\ndata: {\"conflicts\":0,\"parked\":0,\"pending\":3}\n\n"
        );
        assert_eq!(tell(&StatusSummary::default()), "");
    }
}
