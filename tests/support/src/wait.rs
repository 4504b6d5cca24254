//! Waiting for a condition: it is looked at again and again, up to a deadline.

use std::time::{Duration, Instant};

/// How long between two looks.
const STEP: Duration = Duration::from_millis(20);

/// Asks `probe` every 20 ms until it answers `Ok`, and hands its value back.
///
/// # Panics
/// When `timeout` is over: with `what` was waited for and what the probe said last.
pub async fn until<T>(what: &str, timeout: Duration, mut probe: impl AsyncFnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    let mut last = String::from("(the first look did not come back)");
    loop {
        let left = timeout.saturating_sub(started.elapsed());
        // The probe itself may hang (a stalled connection): the deadline holds for it too.
        match tokio::time::timeout(left.max(STEP), probe()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(state)) => last = state,
            Err(_) => over(what, timeout, &format!("{last}, and the last look did not come back")),
        }
        if started.elapsed() >= timeout {
            over(what, timeout, &last);
        }
        tokio::time::sleep(STEP).await;
    }
}

/// [`until`] for tests without a runtime: it blocks the thread.
///
/// # Panics
/// When `timeout` is over: with `what` was waited for and what the probe said last.
pub fn until_blocking<T>(what: &str, timeout: Duration, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match probe() {
            Ok(value) => return value,
            Err(state) if started.elapsed() >= timeout => over(what, timeout, &state),
            Err(_) => std::thread::sleep(STEP),
        }
    }
}

fn over(what: &str, timeout: Duration, last: &str) -> ! {
    panic!("waited {timeout:?} for: {what}. Last state: {last}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hands_back_the_value_as_soon_as_there_is_one() {
        let mut looks = 0;
        let value = until("three looks", Duration::from_secs(5), async || {
            looks += 1;
            if looks == 3 { Ok("there") } else { Err(format!("{looks} looks")) }
        })
        .await;
        assert_eq!((value, looks), ("there", 3));
    }

    #[tokio::test]
    #[should_panic(expected = "for: the moon. Last state: no moon")]
    async fn says_what_was_waited_for_and_the_last_state() {
        until("the moon", Duration::from_millis(50), async || Err::<(), _>("no moon".to_owned())).await;
    }

    #[tokio::test]
    #[should_panic(expected = "did not come back")]
    async fn does_not_hang_with_its_probe() {
        until("an answer", Duration::from_millis(50), async || {
            std::future::pending::<Result<(), String>>().await
        })
        .await;
    }
}
