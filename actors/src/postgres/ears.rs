//! What the cloud says without being asked: that another device has committed a round.
//!
//! ```text
//! fence ─▶ pg_notify, in the round's transaction ─▶ every connection that listens ─▶ `told` ─▶ CloudSyncer
//! ```
//!
//! A hint and no more: the feed is the truth. It is sent with rounds only, because it forbids `PREPARE TRANSACTION` and takes a lock
//! of the whole server's at the commit; plain SQL is found at the next look. A pooler in transaction mode swallows it: that our
//! own came back shows that there is none. What was said while a connection ended is lost, so its end is a hint, too.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Waker};
use std::time::Instant;

use deadpool_postgres::Object;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_postgres::{AsyncMessage, Connection, Error};

use super::{Cloud, CloudSession};

/// Hears for all connections of a pool.
#[derive(Debug, Default)]
pub(super) struct Ears {
    /// This device, whose own rounds are no news.
    device: Mutex<Option<String>>,
    /// Counts what was heard.
    told: watch::Sender<u64>,
    /// Whether our own came back.
    works: AtomicBool,
    /// The connections that listen, by when they were made; of those that ended, the last few.
    listening: Mutex<Vec<Instant>>,
}

/// So many connections are remembered; there are never more than a few.
const REMEMBERED: usize = 16;

impl Ears {
    fn hear(&self, device: &str) {
        if self.device.lock().unwrap_or_else(PoisonError::into_inner).as_deref() == Some(device) {
            self.works.store(true, Ordering::Relaxed);
        } else {
            self.tell();
        }
    }

    fn tell(&self) {
        self.told.send_modify(|told| *told = told.wrapping_add(1));
    }
}

/// The end of a connection, whoever ends it.
struct Until(Arc<Ears>);

impl Drop for Until {
    fn drop(&mut self) {
        self.0.tell();
    }
}

/// Drives a connection to its end. The client learns of an error by itself.
pub(super) async fn drive<S, T>(connection: &mut Connection<S, T>, ears: Arc<Ears>) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let ears = Until(ears);
    while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
        if let AsyncMessage::Notification(heard) = message? {
            ears.0.hear(heard.payload());
        }
    }
    Ok(())
}

impl Cloud {
    /// Grows whenever another device may have changed something.
    pub fn heard(&self) -> watch::Receiver<u64> {
        self.ears.told.subscribe()
    }

    /// Whether the cloud is known to pass on what devices announce.
    pub fn announces(&self) -> bool {
        self.ears.works.load(Ordering::Relaxed)
    }
}

impl CloudSession {
    /// Listens on this connection, for as long as it lasts, to what other devices than this one announce. Nobody waits for it.
    /// Where sessions are shared, it would be somebody else's that listens.
    pub fn listen(&self, device: &str) {
        if self.client.is_shared() {
            return;
        }
        let ears = &self.cloud.ears;
        *ears.device.lock().unwrap_or_else(PoisonError::into_inner) = Some(device.to_owned());
        let made = Object::metrics(&self.client).created;
        let mut listening = ears.listening.lock().unwrap_or_else(PoisonError::into_inner);
        if listening.contains(&made) {
            return;
        }
        if listening.len() >= REMEMBERED {
            listening.remove(0);
        }
        listening.push(made);
        // The driver sends with the first poll, and reads the answer for nobody.
        let sent = pin!(self.client.batch_execute("LISTEN tidewater"));
        let _ = sent.poll(&mut Context::from_waker(Waker::noop()));
    }
}
