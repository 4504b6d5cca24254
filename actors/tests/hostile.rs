//! A server that means harm: whatever it says, it is told in one line of one class, soon, without a panic, and takes no more
//! memory than is written.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs, unreachable_pub)]

use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

use tidewater_actors::core::failure::{CloudFailure, FailureClass};
use tidewater_actors::postgres::{Cloud, CloudOptions, LinkOptions, PasswordCommand, PasswordSource};
use tidewater_test_support::HostileServer;
use tidewater_test_support::hostile::{
    Talk, announced, complete, error, logged_in, message, prepared, ready, row,
};

use FailureClass::{Busy, Credentials, NotAnswering, NotOurs, Transient};

const SECRET: &str = "hunter2-very-secret";
const BOOL: u32 = 16;
const TEXT: u32 = 25;
const UUID: u32 = 2950;
const INT8: u32 = 20;
const TEXTS: u32 = 1009;

fn options(port: u16) -> CloudOptions {
    CloudOptions {
        host: "127.0.0.1".into(),
        port,
        database: "shop".into(),
        user: "till".into(),
        password: Some(SECRET.into()),
        schema: "public".into(),
        timeout: Duration::from_secs(20),
        statement_timeout: Duration::from_secs(20),
        pool_max: 2,
        application_name: "tidewater-test".into(),
        add_columns: true,
        link: LinkOptions::default(),
    }
}

/// What the check says, in how long. It fits on a terminal's line, and no word of it is a password.
async fn failure_of(options: CloudOptions) -> (CloudFailure, Duration) {
    let began = Instant::now();
    let failure = Cloud::new(options).unwrap().check().await.expect_err("nobody to sync with is there");
    let took = began.elapsed();
    assert_shown(&failure);
    (failure, took)
}

fn assert_shown(failure: &CloudFailure) {
    let shown = format!("{failure:?} {failure}");
    assert!(!shown.contains(SECRET), "{shown}");
    for text in [&failure.detail, failure.remedy.as_ref().unwrap_or(&String::new())] {
        assert!(text.chars().all(|c| !c.is_control()) && text.chars().count() < 2100, "{text:?}");
    }
}

async fn check(script: impl Fn(&mut Talk) -> io::Result<()> + Send + Sync + 'static) -> CloudFailure {
    let server = HostileServer::start(script);
    let (failure, took) = failure_of(options(server.port())).await;
    println!("{took:?}: {:?}: {:.150}", failure.class, failure.detail);
    assert_eq!(server.accepted(), 1, "{failure:?}");
    failure
}

/// What goes on is not PostgreSQL: nothing of it is waited for.
async fn assert_foreign(detail: &str, script: impl Fn(&mut Talk) -> io::Result<()> + Send + Sync + 'static) {
    let failure = check(script).await;
    assert!(
        failure.class == NotOurs
            && failure.detail.starts_with("what answers does not go on as PostgreSQL does (")
            && failure.detail.contains(detail)
            && failure.remedy.is_some(),
        "{detail}: {failure:?}"
    );
}

/// During the log-in: garbage, absurd lengths, a message that is announced larger than any, and talk without end.
#[tokio::test]
async fn a_log_in_that_goes_astray_is_given_up() {
    let begun = message(b'R', &[0; 4]);
    let after = |bytes: Vec<u8>| {
        let begun = begun.clone();
        move |talk: &mut Talk| {
            talk.hear_startup()?;
            talk.raw(&begun)?;
            talk.raw(&bytes)?;
            talk.hold()
        }
    };
    assert_foreign("type z", after(vec![b'z'; 100])).await;
    assert_foreign("0 bytes", after(announced(b'S', 0, b""))).await;
    assert_foreign("-1 bytes", after(announced(b'K', -1, b""))).await;
    assert_foreign("2147483647 bytes (type Z)", after(announced(b'Z', i32::MAX, b""))).await;
    assert_foreign("1073741824 bytes (type E)", after(announced(b'E', 1 << 30, b"SFATAL\0"))).await;
    // Everything at once after the log-in, where a question is answered before it is asked.
    assert_foreign("unexpected message", |talk| {
        talk.log_in()?;
        talk.raw(&complete())?;
        talk.hold()
    })
    .await;
}

/// Authentication that never ends, and one that would cost minutes of computing.
#[tokio::test]
async fn a_log_in_costs_nothing() {
    let again = |kind: u8| {
        move |talk: &mut Talk| {
            talk.hear_startup()?;
            talk.forever(&message(b'R', &[0, 0, 0, kind, 1, 2, 3, 4]))
        }
    };
    // MD5's salt, for ever.
    assert_eq!(check(again(5)).await.class, NotOurs);
    for iterations in ["2147483648", "4294967296", "-1"] {
        let dear = check(move |talk: &mut Talk| {
            talk.hear_startup()?;
            talk.raw(&message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"))?;
            let (_, first) = talk.hear()?;
            let nonce = String::from_utf8_lossy(&first).rsplit("r=").next().unwrap_or_default().to_owned();
            let body = format!("r={nonce}x,s=QSXCR+Q6sek8bf92,i={iterations}");
            talk.raw(&message(b'R', &[&[0, 0, 0, 11], body.as_bytes()].concat()))?;
            talk.hold()
        })
        .await;
        assert_eq!(dear.class, Credentials, "{dear:?}");
    }
}

/// A password that somebody has set is not sent as it is, to whoever asks; it is where that is allowed, and what a command prints
/// always is. What a server then says of it is not passed on.
#[tokio::test]
async fn a_password_is_not_told_to_whoever_asks() {
    let (tell, heard) = std::sync::mpsc::channel();
    let server = HostileServer::start(move |talk| {
        talk.hear_startup()?;
        talk.raw(&message(b'R', &[0, 0, 0, 3]))?;
        let said = talk.hear();
        let password =
            said.as_ref().map_or(String::new(), |(_, body)| String::from_utf8_lossy(body).into_owned());
        tell.send(password.clone()).unwrap();
        said?;
        talk.raw(&message(b'E', &error("28P01", format!("\"{password}\" is wrong").as_bytes())))
    });
    let (refused, _) = failure_of(options(server.port())).await;
    assert_eq!(refused.class, Credentials);
    assert_eq!(refused.detail, "PostgreSQL asks for the password in the clear, on a line without TLS");
    assert!(refused.remedy.unwrap().contains("cloud.password_in_clear"));
    assert_eq!(heard.recv().unwrap(), "");

    let link = LinkOptions { password_in_clear: true, ..LinkOptions::default() };
    let (told, _) = failure_of(CloudOptions { link, ..options(server.port()) }).await;
    assert_eq!((told.class, told.sqlstate.as_deref()), (Credentials, Some("28P01")));
    assert_eq!(heard.recv().unwrap().trim_end_matches('\0'), SECRET);

    let command = PasswordCommand {
        argv: vec!["echo".into(), SECRET.into()],
        timeout: Duration::from_secs(10),
        ttl: Duration::from_secs(60),
    };
    let link = LinkOptions { password: PasswordSource::Command(command), ..LinkOptions::default() };
    let (told, _) = failure_of(CloudOptions { password: None, link, ..options(server.port()) }).await;
    assert_eq!(told.class, Credentials, "{told:?}");
    assert_eq!(heard.recv().unwrap().trim_end_matches('\0'), SECRET);
}

/// What a server says of an error is one line, without anything that a terminal obeys, and not longer than a page; its code is
/// none but a code.
#[tokio::test]
async fn an_error_does_not_paint_the_terminal() {
    let says = |code: &'static str, words: Vec<u8>| {
        move |talk: &mut Talk| {
            talk.hear_startup()?;
            talk.raw(&message(b'E', &error(code, &words)))
        }
    };
    let painted =
        check(says("57P03", b"\x1b[2J\x1b]0;owned\x07\r\n2026 | INFO | all is well\n\xff\xfe".to_vec()))
            .await;
    assert_eq!(painted.class, Busy);
    assert!(painted.detail.starts_with("\\u{1b}[2J\\u{1b}]0;owned\\u{7}\\r\\n2026 | INFO"), "{painted:?}");
    let mirrored = check(says("53300", "\u{202e}desrever".into())).await;
    assert!(mirrored.detail.starts_with("\\u{202e}desrever"), "{mirrored:?}");
    let long = check(says("53300", vec![b'x'; 29_000])).await;
    assert_eq!((long.class, long.detail.chars().count()), (Busy, 2001));
    let code = check(says("\x1b[31m and more", b"no".to_vec())).await;
    assert_eq!((code.sqlstate.as_deref(), code.detail.as_str()), (Some("XX000"), "no (SQLSTATE XX000)"));
}

/// The answer to the first question is of another shape than any that was asked for.
#[tokio::test]
async fn an_answer_of_another_shape_is_no_answer() {
    let there = [("there", BOOL)];
    let answers = |columns: &'static [(&'static str, u32)], rows: Vec<u8>| {
        move |talk: &mut Talk| {
            talk.log_in()?;
            talk.prepare(columns)?;
            talk.begin_rows()?;
            talk.raw(&rows)?;
            talk.raw(&complete())?;
            talk.hold()
        }
    };
    assert_foreign("cannot convert", answers(&[("there", TEXT)], row(&[b"yes"]))).await;
    assert_foreign("field count", answers(&[("there", BOOL)], row(&[b"\x01", b"\x01"]))).await;
    assert_foreign("field count", answers(&[("there", BOOL), ("other", BOOL)], row(&[b"\x01"]))).await;
    assert_foreign("column", answers(&[], row(&[]))).await;
    assert_foreign("buffer size", answers(&[("there", BOOL)], row(&[b"\x01\x02\x03"]))).await;
    assert_foreign("number of rows", answers(&[("there", BOOL)], vec![])).await;
    assert_foreign("number of rows", answers(&[("there", BOOL)], row(&[b"\x01"]).repeat(2))).await;
    assert_foreign(
        "unexpected EOF",
        answers(&[("there", BOOL)], announced(b'D', 11, b"\0\x01\0\0\0\x09\x01")),
    )
    .await;
    for copy in [b'G', b'H', b'd', b'W', b'3', b'R', b'K', b'?'] {
        assert_foreign("message", move |talk: &mut Talk| {
            talk.log_in()?;
            talk.prepare(&there)?;
            talk.begin_rows()?;
            talk.raw(&message(copy, &[0; 9]))?;
            talk.raw(&complete())?;
            talk.hold()
        })
        .await;
    }
}

/// An answer without an end, or none: the check has one, and says that nobody answers.
#[tokio::test]
async fn who_is_never_ready_does_not_answer() {
    for rows in [vec![], row(&[b"\x01"]), [row(&[b"\x01"]), message(b'C', b"SELECT 1\0")].concat()] {
        let server = HostileServer::start(move |talk: &mut Talk| {
            talk.log_in()?;
            talk.prepare(&[("there", BOOL)])?;
            talk.begin_rows()?;
            talk.raw(&rows)?;
            talk.hold()
        });
        let short = CloudOptions { timeout: Duration::from_millis(400), ..options(server.port()) };
        let (failure, took) = failure_of(short).await;
        assert_eq!(failure.class, NotAnswering, "{failure:?}");
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
}

/// Slow, or without the key that only a cancellation needs, it is a server all the same.
#[tokio::test]
async fn odd_is_not_hostile() {
    let answers = |pause: Option<Duration>, log_in: Vec<u8>| {
        move |talk: &mut Talk| {
            let say = |talk: &mut Talk, bytes: &[u8]| match pause {
                Some(pause) => talk.slowly(bytes, pause),
                None => talk.raw(bytes),
            };
            talk.hear_startup()?;
            say(talk, &log_in)?;
            talk.know_the_client()?;
            talk.hear_request()?;
            say(talk, &prepared(&[("there", BOOL)]))?;
            talk.hear_request()?;
            say(talk, &[message(b'2', b""), row(&[b"\0"]), complete()].concat())?;
            talk.hold()
        }
    };
    let slow = HostileServer::start(answers(Some(Duration::from_millis(1)), logged_in()));
    Cloud::new(options(slow.port())).unwrap().check().await.unwrap();
    let keyless = HostileServer::start(answers(None, [message(b'R', &[0; 4]), ready()].concat()));
    Cloud::new(options(keyless.port())).unwrap().check().await.unwrap();
}

// ---------------------------------------------------------------------------------------------------------
// Memory
// ---------------------------------------------------------------------------------------------------------

const MEASURED: &str = "TIDEWATER_TEST_HOSTILE_MEASURED";

/// The most memory that this process has had, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Not a test by itself: run by the one below, in a process of its own, whose memory is its own.
#[test]
fn floods_as_told() {
    if std::env::var_os(MEASURED).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(floods());
    println!("\nfloods: as told");
}

type Flood = Box<dyn Fn(&mut Talk) -> io::Result<()> + Send + Sync>;

async fn floods() {
    let begun = message(b'R', &[0; 4]);
    let notice = message(b'N', &error("00000", &[b'x'; 1000]));
    let named = |n: u32| message(b'S', format!("name{n}\0{n}\0").as_bytes());
    let names = move || (0..100_000).flat_map(named).collect::<Vec<u8>>();
    let floods: Vec<(&str, FailureClass, Flood)> = vec![
        (
            "notices during the log-in",
            NotOurs,
            Box::new({
                let (begun, notice) = (begun.clone(), notice.clone());
                move |talk| {
                    talk.hear_startup()?;
                    talk.raw(&begun)?;
                    talk.forever(&notice)
                }
            }),
        ),
        (
            "parameters during the log-in",
            NotOurs,
            Box::new({
                let begun = begun.clone();
                move |talk| {
                    talk.hear_startup()?;
                    talk.raw(&begun)?;
                    talk.forever(&names())
                }
            }),
        ),
        (
            "notices after the log-in",
            NotOurs,
            Box::new({
                let notice = notice.clone();
                move |talk| {
                    talk.log_in()?;
                    talk.forever(&notice)
                }
            }),
        ),
        (
            "notices in an answer",
            NotOurs,
            Box::new(move |talk| {
                talk.log_in()?;
                talk.prepare(&[("there", BOOL)])?;
                talk.begin_rows()?;
                talk.forever(&notice)
            }),
        ),
        (
            "small rows",
            NotOurs,
            Box::new(|talk| {
                talk.log_in()?;
                talk.prepare(&[("there", BOOL)])?;
                talk.begin_rows()?;
                talk.forever(&row(&[b"\x01"]))
            }),
        ),
        (
            "large rows",
            NotOurs,
            Box::new(|talk| {
                talk.log_in()?;
                talk.prepare(&[("there", BOOL)])?;
                talk.begin_rows()?;
                talk.forever(&row(&[&[1; 1 << 20]]))
            }),
        ),
        (
            "rows of no column",
            NotOurs,
            Box::new(|talk| {
                talk.log_in()?;
                talk.prepare(&[])?;
                talk.begin_rows()?;
                talk.forever(&row(&[]))
            }),
        ),
        (
            "an error of 100 MiB",
            NotOurs,
            Box::new(|talk| {
                talk.log_in()?;
                talk.hear_request()?;
                talk.raw(&announced(b'E', 100 << 20, b"SERROR\0"))?;
                talk.forever(&[b'x'; 1000])
            }),
        ),
        (
            "a row of a gibibyte, fast",
            NotOurs,
            Box::new(|talk| {
                talk.log_in()?;
                talk.prepare(&[("there", BOOL)])?;
                talk.begin_rows()?;
                talk.raw(&announced(b'D', 1 << 30, b"\0\x01"))?;
                talk.forever(&[b'x'; 1000])
            }),
        ),
        (
            "a row of a gibibyte, byte by byte",
            NotOurs,
            Box::new(|talk| {
                talk.log_in()?;
                talk.prepare(&[("there", BOOL)])?;
                talk.begin_rows()?;
                talk.slowly(&announced(b'D', 1 << 30, b"\0\x01"), Duration::from_millis(20))?;
                talk.hold()
            }),
        ),
        (
            "columns without end",
            NotOurs,
            Box::new(|talk| {
                talk.log_in()?;
                talk.hear_request()?;
                talk.raw(&[message(b'1', b""), message(b't', &[0, 0])].concat())?;
                talk.forever(&message(b'T', &[0, 0]))
            }),
        ),
    ];
    for (what, class, flood) in floods {
        let before = peak_kib();
        let server = HostileServer::start(flood);
        let (failure, took) = failure_of(options(server.port())).await;
        let grown = peak_kib().saturating_sub(before);
        println!("{what}: {grown} KiB more, {took:?}, {:?}: {:.100}", failure.class, failure.detail);
        assert_eq!(failure.class, class, "{what}: {failure:?}");
        assert!(grown < 64 << 10, "{what}: {grown} KiB more");
    }
    // An array whose length is a lie, in a session.
    let before = peak_kib();
    let server = HostileServer::start(|talk| {
        talk.log_in()?;
        // What it is asked for has five parameters.
        talk.hear_request()?;
        let kinds = [UUID, UUID, TEXT, TEXT, INT8].map(u32::to_be_bytes).concat();
        let description = message(b't', &[&[0, 5], kinds.as_slice()].concat());
        let columns = prepared(&[("round_id", UUID), ("round_number", INT8), ("left_out", TEXTS)]);
        let after_parameters = &columns[5 + 7..];
        talk.raw(&[&message(b'1', b""), &description, after_parameters].concat())?;
        talk.begin_rows()?;
        let array = [1, 0, TEXT, i32::MAX as u32, 1].map(u32::to_be_bytes).concat();
        talk.raw(&row(&[&[7; 16], &[0; 8], &array]))?;
        talk.raw(&complete())?;
        talk.hold()
    });
    let session = Cloud::new(options(server.port())).unwrap().connect().await.unwrap();
    let device = "00000000-0000-0000-0000-000000000001";
    let failure = session.settle(device, device, None).await.unwrap_err();
    assert_shown(&failure);
    let grown = peak_kib().saturating_sub(before);
    println!("an array of 2147483647 elements: {grown} KiB more: {failure:?}");
    assert!(
        failure.class == Transient && failure.detail.contains("an array of 2147483647 elements"),
        "{failure:?}"
    );
    assert!(grown < 64 << 10);
}

/// Floods of every kind are held back: each costs less than 64 MiB, and is told of as what it is.
#[test]
fn nothing_that_a_server_says_is_kept_without_a_bound() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "floods_as_told", "--nocapture", "--test-threads=1"])
        .env(MEASURED, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(
        output.status.success() && text.contains("floods: as told"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
