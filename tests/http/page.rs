//! The page: its headers, and what a person sees of it in a browser.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use tidewater_test_support::{Browser, shell, wait};

use crate::actions::port_of;
use crate::client::{Events, get, get_with};
use crate::process::{Device, PATIENCE, Process};
use crate::{alone, serving};

/// What would be HTML if anybody took it for that.
const HOSTILE: &str = "<img src=x onerror=\"document.title=1\"><script>document.title=1</script>";

/// More than a double holds.
const LARGE: &str = "9007199254740993";

/// The page may run its own script and use its own style, ask the server that it came from, and nothing else; nobody may frame
/// it.
#[test]
fn the_page_is_kept_to_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (mut command, _nobody) = alone(folder.path());
    let (process, address) = serving(&mut command);
    let page = get(address, "/");
    assert_eq!(
        (page.status, page.header("Content-Type")),
        (200, Some("text/html; charset=utf-8")),
        "{page:?}"
    );
    for (name, value) in [
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("Cache-Control", "no-store"),
    ] {
        assert_eq!(page.header(name), Some(value), "{page:?}");
    }
    let policy = page.header("Content-Security-Policy").unwrap();
    let directives: Vec<&str> = policy.split("; ").collect();
    for directive in [
        "default-src 'none'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ] {
        assert!(directives.contains(&directive), "{directive}: {policy}");
    }
    for kind in ["script-src 'sha256-", "style-src 'sha256-"] {
        assert!(directives.iter().any(|it| it.starts_with(kind) && it.ends_with('\'')), "{kind}: {policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    assert!(!page.body.contains("{{"));
    process.stop();
}

/// An address of this process's own, so that a supervisor comes back where it was.
fn own_address() -> SocketAddr {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    SocketAddr::from(([127, a.max(1), b, c.clamp(1, 254)], 8433))
}

/// A supervisor on that address.
fn start(command: &mut Command, address: SocketAddr) -> Process {
    let process = Process::ready(command.env("TIDEWATER_HTTP__LISTEN", address.to_string()));
    wait::until_blocking("it answers", PATIENCE, || match TcpStream::connect(address) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    });
    process
}

/// Somebody else on a supervisor's address, who says that everything takes the token and knows none.
struct Impostor {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    listening: std::thread::JoinHandle<Vec<String>>,
}

impl Impostor {
    fn listen(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let over = Arc::<AtomicBool>::default();
        let ended = over.clone();
        let listening = std::thread::spawn(move || {
            let mut heads = vec![];
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                let mut stream = stream.unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
                let mut head = vec![];
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                    head.push(byte[0]);
                }
                // A browser opens connections that it may need later.
                if head.is_empty() {
                    continue;
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let (status, body) = match head.starts_with("GET /proof?") {
                    true => ("200 OK", format!("{{\"proof\":\"{}\"}}", "0".repeat(64))),
                    false => ("401 Unauthorized", "the token, please".to_owned()),
                };
                let length = body.len();
                // Whoever has gone is not answered.
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
                heads.push(head);
            }
            heads
        });
        Self { address, over, listening }
    }

    /// What it was asked.
    fn stop(self) -> Vec<String> {
        self.over.store(true, Ordering::SeqCst);
        let _wakes = TcpStream::connect(self.address).unwrap();
        self.listening.join().unwrap()
    }
}

/// What anybody can see is named, has its heading and enough contrast, and fits; what is wrong, as texts.
const FAULTS: &str = r#"
const faults = [];
const nameOf = it => (it.getAttribute("aria-label") ?? it.getAttribute("aria-labelledby")?.split(" ")
    .map(id => document.getElementById(id)?.textContent ?? "").join(" ") ?? [...(it.labels ?? [])].map(l => l.textContent).join(" "))
    || it.textContent;
const one = selector => { if (document.querySelectorAll(selector).length !== 1) faults.push(`not one ${selector}`); };
one("h1"); one("main"); one("body > header"); one("html[lang]");
let level = 0;
for (const it of document.querySelectorAll("h1, h2, h3, h4")) {
    if (it.closest("dialog")) continue;
    const now = Number(it.tagName[1]);
    if (now > level + 1) faults.push(`${it.tagName} after H${level}: ${it.textContent}`);
    level = now;
}
for (const it of document.querySelectorAll("button, input, section, article, dialog, table, svg[role=img]")) {
    if (it.checkVisibility() && !nameOf(it)?.trim()) faults.push(`no name: ${it.outerHTML.slice(0, 80)}`);
}
for (const it of document.querySelectorAll("th")) if (!it.scope) faults.push(`no scope: ${it.textContent}`);
const rgb = text => (text.match(/[\d.]+/g) ?? []).map(Number);
const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [.2126, .7152, .0722][at], 0);
const behind = it => { for (; it; it = it.parentElement) { const c = rgb(getComputedStyle(it).backgroundColor); if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
for (const it of document.querySelectorAll("body *")) {
    const own = [...it.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || !it.checkVisibility() || it.closest(".hidden, script, style")) continue;
    const style = getComputedStyle(it);
    const [a, b] = [light(rgb(it.closest("svg") ? style.fill : style.color)), light(behind(it.closest("svg")?.parentElement ?? it))];
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < 4.5) faults.push(`contrast ${contrast.toFixed(1)}: ${it.textContent.trim().slice(0, 40)}`);
}
for (const it of document.querySelectorAll("button, input, summary")) {
    if (it.checkVisibility() && it.getBoundingClientRect().height < 44) faults.push(`low: ${it.textContent}`);
}
if (document.documentElement.scrollWidth > innerWidth) faults.push(`wider than ${innerWidth}: ${document.documentElement.scrollWidth}`);
return faults;
"#;

/// Looks at the page in light and dark, wide and narrow.
fn assert_readable(browser: &Browser) {
    for (width, height, scheme) in
        [(1200, 1700, "light"), (1200, 1700, "dark"), (360, 3000, "light"), (320, 3000, "dark")]
    {
        browser.resize(width, height);
        browser.prefer(scheme);
        browser.wait_until(
            "the pictures fit",
            "return document.querySelector('#timeline').viewBox.baseVal.width <= innerWidth",
        );
        assert_eq!(browser.script(FAULTS), Value::Array(vec![]), "{width} {scheme}");
        let picture = browser.screenshot();
        assert!(picture.starts_with(b"\x89PNG") && picture.len() > 10_000, "{} bytes", picture.len());
        // For people: what this test has seen.
        if let Some(folder) = std::env::var_os("TIDEWATER_SCREENSHOTS") {
            let name = format!("page-{width}-{scheme}.png");
            std::fs::write(std::path::Path::new(&folder).join(name), picture).unwrap();
        }
    }
    browser.resize(1200, 900);
    browser.prefer("light");
}

/// From a start without a cloud through a backlog, the recovery, a row that is refused and a value that loses, each mended by a
/// button, and past a restart of the supervisor: the page says how it is, runs nothing that came out of a row, and can be read
/// by everybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_goes_through_all_of_it() {
    let device = Device::new().await;
    let sql = |sql: &str| shell::sqlite3_shell(device.path(), sql);
    sql("CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT, stars INTEGER);");
    let address = own_address();
    let process = start(&mut device.command(), address);
    let token = std::fs::read_to_string(device.folder.path().join("shop.db.token")).unwrap();
    let browser = Browser::start();
    browser.open(&format!("http://{address}/"));

    // The start, without a cloud.
    browser.wait_for_text("#connection", "Cloud SQL is unavailable");
    browser.wait_for_text("#cloud", "Proxy not running on");
    browser.wait_for_text("#sync", "offline");
    browser.wait_for_text("#process", "ready");
    browser.wait_for_text("#actors", "CloudSyncer ● running 0 0");

    // A backlog, and the recovery.
    sql("INSERT INTO note VALUES (1, 'base', 3), (2, 'untouched', 5), (3, 'another', 1);");
    browser.wait_for_text("#pending", "Pending: 3");
    device.proxy.start();
    browser.wait_for_text("#connection", "Cloud SQL is available");
    browser.wait_for_text("#pending", "Pending: 0");
    browser.wait_for_text("#flushed", "Flushed: 3");
    browser.wait_for_text("#circuit", "closed");
    device.wait_until_equal(&["note"]).await;

    // A row that is refused, and a value that loses.
    device.cloud.execute_batch("ALTER TABLE note ADD CONSTRAINT five_at_most CHECK (stars <= 5)").await;
    sql(&format!("INSERT INTO note VALUES (4, '{}', {LARGE});", HOSTILE.replace('\'', "''")));
    browser.wait_for_text("#parked-title", "Parked rows (1)");
    device.proxy.stop();
    browser.wait_for_text("#connection", "Cloud SQL is unavailable");
    sql("UPDATE note SET body = 'here' WHERE id = 1;");
    device.cloud.execute_batch("UPDATE note SET body = 'there' WHERE id = 1").await;
    device.proxy.start();
    browser.wait_for_text("#conflicts-title", "Conflicts (1)");
    browser.wait_for_text("#pending", "Pending: 0");

    // Neither is shown without the token, and no button does anything.
    assert_eq!(browser.text("#parked-list") + &browser.text("#conflicts-list"), "");
    browser.press("#flush");
    browser.wait_for_text("#said", "This takes the token");
    browser.enter("#token", "a-word-that-is-long-enough-and-wrong");
    browser.press("#token-form button");
    browser.wait_for_text("#token-state", "That is not the token");
    assert!(browser.text("#token-hint").contains("shop.db.token"));
    browser.enter("#token", token.trim_end());
    browser.press("#token-form button");
    browser.wait_for_text("#token-state", "The token is used");

    // Whatever a row holds is text, to the last digit.
    browser.wait_for_text("#parked-list", HOSTILE);
    browser.wait_for_text("#parked-list", &format!("stars {LARGE} integer"));
    browser.wait_for_text("#parked-list", "five_at_most");
    browser.wait_for_text("#conflicts-list", "there");
    assert_eq!(browser.script("return document.querySelectorAll('main img, main script').length"), 0);
    assert!(browser.script("return document.title").as_str().unwrap().starts_with("Tidewater: available"));
    assert_readable(&browser);

    // A retry that is refused again, one that is not, and what lost brought back.
    browser.press("#parked-list [data-key^=retry]");
    browser.wait_for_text("#said", "1 row waits to be sent again");
    browser.wait_for_text("#parked-list", "refused 2 times");
    device.cloud.execute_batch("ALTER TABLE note DROP CONSTRAINT five_at_most").await;
    browser.press("#check");
    browser.wait_for_text("#said", "available: ");
    // It may have gone by itself: the cloud's table is another one now.
    if get_with(address, token.trim_end(), "/parked").json()["total"] == 1 {
        browser.script("document.querySelector('#parked-list [data-key^=retry]')?.click()");
    }
    browser.wait_for_text("#parked-title", "Parked rows (0)");
    browser.wait_for_text("#parked-text", "The cloud refuses no row");
    let conflict = get_with(address, token.trim_end(), "/conflicts").json()["rows"][0].clone();
    let lost = if conflict["kept"] == "cloud" { &conflict["local"] } else { &conflict["cloud"] };
    browser.press("#conflicts-list [data-key^=restore]");
    browser.wait_for_text("#said", "1 value is restored");
    assert_eq!(sql("SELECT body FROM note WHERE id = 1;").trim_end(), lost.as_str().unwrap());
    device.wait_until_equal(&["note"]).await;

    // A deletion there that lost against an edit here is no NULL, and is not brought back without a question: it takes the row.
    device.proxy.stop();
    browser.wait_for_text("#connection", "Cloud SQL is unavailable");
    let batch = "DELETE FROM note WHERE id = 2; UPDATE note SET body = NULL WHERE id = 3; UPDATE note SET body = 'whole' WHERE id = 1";
    device.cloud.execute_batch(batch).await;
    sql("UPDATE note SET body = 'kept' WHERE id IN (2, 3); DELETE FROM note WHERE id = 1;");
    device.proxy.start();
    browser.wait_for_text("#conflicts-title", "Conflicts (4)");
    browser.wait_for_text("#conflicts-list", "the row is deleted");
    browser.wait_for_text("#conflicts-list", "NULL");
    let conflicts = get_with(address, token.trim_end(), "/conflicts").json();
    let id_of = |row: i64| {
        let all = conflicts["rows"].as_array().unwrap();
        all.iter().find(|it| it["key"]["id"] == row).unwrap()["id"].as_i64().unwrap()
    };
    let (deletion, null) = (id_of(2), id_of(3));
    let card = |id: i64| browser.text(&format!("article[aria-labelledby=conflict-{id}]"));
    assert!(!card(deletion).contains("NULL") && !card(null).contains("delet"), "{}", card(null));
    // The newest of a row is the first in the list. A whole row has the names of its columns.
    let row = id_of(1);
    for part in ["the whole row", "Lost, in the cloud", "the row is deleted", "body whole", "stars 3"] {
        assert!(card(row).contains(part), "{part}: {}", card(row));
    }
    let restore = |id: i64| browser.press(&format!("[data-key=restore-{id}]"));
    restore(null);
    browser.wait_for_text("#said", "1 value is restored");
    assert_eq!(sql("SELECT body IS NULL FROM note WHERE id = 3;"), "1\n");
    restore(row);
    browser.wait_for_text("#said", "1 row is restored");
    assert_eq!(sql("SELECT body FROM note WHERE id = 1;"), "whole\n");
    restore(deletion);
    browser.wait_for_text("#sure", "deletes the whole row of note, id 2");
    browser.press("#sure-no");
    assert_eq!(sql("SELECT body FROM note WHERE id = 2;"), "kept\n");
    restore(deletion);
    browser.press("#sure-yes");
    browser.wait_for_text("#said", "1 row is deleted");
    assert_eq!(sql("SELECT count(*) FROM note WHERE id = 2;"), "0\n");
    device.wait_until_equal(&["note"]).await;

    // A row that is given up, on second thoughts.
    device.cloud.execute_batch("ALTER TABLE note ADD CONSTRAINT no_nine CHECK (stars <> 9)").await;
    sql("INSERT INTO note VALUES (5, 'given up', 9);");
    browser.wait_for_text("#parked-list", "given up");
    browser.press("#parked-list [data-key^=discard]");
    browser.wait_for_text("#sure", "the insert of note, id 5");
    browser.press("#sure-no");
    assert!(browser.text("#parked-list").contains("given up"));
    browser.press("#parked-list [data-key^=discard]");
    browser.press("#sure-yes");
    browser.wait_for_text("#said", "1 row is given up");
    browser.wait_for_text("#parked-text", "The cloud refuses no row");
    assert_eq!(sql("SELECT count(*) FROM note WHERE id = 5;"), "0\n");

    browser.press("#reset");
    browser.wait_for_text("#said", "Failures and waits are forgotten");
    process.wait_for_line("🔄 Proxy detector reset");
    browser.press("#warm");
    browser.wait_for_text("#said", "The warm-up has begun");

    // What passed before the page was opened is there as well, and the token stays with its tab.
    browser.open(&format!("http://{address}/"));
    browser.wait_for_text("#token-state", "The token is used");
    // Until everything has its height, a button is elsewhere a moment later.
    browser.wait_for_text("#cloud", "PostgreSQL answers");
    browser.wait_for_text("#flushed", "(+");
    browser.press("details summary");
    browser.wait_for_text("#changes", "▲ unavailable");
    assert!(!browser.text("#flushed").contains("(+0)"), "{}", browser.text("#flushed"));

    // The supervisor goes, and comes back.
    process.stop();
    browser.wait_for_text("#connection", "not reachable");
    browser.press("#flush");
    browser.wait_for_text("#said", "did not answer");

    // Whoever takes its port meanwhile, and asks for the token, is not given it.
    let impostor = Impostor::listen(address);
    browser.wait_for_text("#token-state", "It was not sent");
    browser.wait_for_text("#connection", "takes the token");
    let asked = impostor.stop();
    assert!(asked.iter().any(|head| head.starts_with("GET /events ")), "{asked:#?}");
    assert!(asked.iter().any(|head| head.starts_with("GET /proof?nonce=")), "{asked:#?}");
    for head in &asked {
        assert!(!head.to_lowercase().contains("authorization") && !head.contains(token.trim_end()), "{head}");
    }

    let process = start(&mut device.command(), address);
    browser.enter("#token", token.trim_end());
    browser.press("#token-form button");
    browser.wait_for_text("#connection", "Cloud SQL is available");
    browser.wait_for_text("#token-state", "The token is used");
    browser.press("#flush");
    browser.wait_for_text("#said", "The flush has begun");
    let changes = browser.text("#changes");
    for word in ["● available", "▲ unavailable", "not reachable"] {
        assert!(changes.contains(word), "{changes}");
    }

    // That nobody answered is said by the browser as well; anything else would be a fault of the page.
    let console: Vec<_> = browser.console();
    let faults: Vec<_> = console
        .iter()
        .filter(|line| !line.contains("net::ERR_") && !line.contains("401 (Unauthorized)"))
        .collect();
    assert!(faults.is_empty(), "{faults:#?}");
    drop(browser);
    process.stop();
}

/// A tab that nobody sees holds no place among those who follow, and one that has none asks now and then. Nobody has watched
/// what passed while the machine slept.
#[test]
fn a_page_that_follows_nothing_shows_how_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (mut command, _nobody) = alone(folder.path());
    let (process, address) = serving(command.env("TIDEWATER_HTTP__SUBSCRIBERS_MAX", "1"));
    let browser = Browser::start();
    browser.open(&format!("http://{address}/"));
    browser.wait_for_text("#connection", "Connected. Cloud SQL is unavailable.");
    browser.wait_for_text("#cloud", "Proxy not running on");
    browser.press("details summary");
    browser.script("const now = Date.now; Date.now = () => now() + 3_600_000;");
    browser.wait_for_text("#changes", "not watched");
    let refused = || Events::try_follow(address, "/events").err();
    assert!(refused().is_some_and(|line| line.contains("503")), "the page has the only place");

    let show = |hidden: bool| {
        browser.script(&format!(
            "Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }}); \
             document.dispatchEvent(new Event('visibilitychange'));"
        ));
    };
    show(true);
    let held = wait::until_blocking("the place is free", PATIENCE, || Events::try_follow(address, "/events"));
    show(false);
    browser.wait_for_text("#connection", "this page asks every 2 s instead");
    let sql = "CREATE TABLE note (id INTEGER PRIMARY KEY); INSERT INTO note VALUES (1), (2);";
    shell::sqlite3_shell(folder.path().join("alone.db"), sql);
    browser.wait_for_text("#pending", "Pending: 2");
    drop(held);
    browser.wait_for_text("#connection", "Connected. Cloud SQL is unavailable.");
    wait::until_blocking("the page follows again", PATIENCE, || {
        refused().ok_or_else(|| "the place is free".to_owned()).map(drop)
    });
    drop(browser);
    process.stop();
}

/// A form on a page of another origin reaches the supervisor, as every form does, and changes nothing; a script there reads nothing.
#[test]
fn no_other_page_acts_on_ones_behalf() {
    let folder = tempfile::tempdir().unwrap();
    let (mut command, _nobody) = alone(folder.path());
    let (process, address) = serving(&mut command);
    let browser = Browser::start();
    browser.open(&format!(
        "data:text/html,<form method=post action=http://{address}/reset><button>go</button></form>"
    ));
    browser.press("button");
    browser.wait_for_text("body", "pages of another origin may not ask for this");
    browser.open("data:text/html,<p>nothing yet");
    browser.script(&format!(
        "fetch('http://{address}/status').then(it => it.text(), () => 'refused')\
         .then(text => {{ document.querySelector('p').textContent = text; }});"
    ));
    browser.wait_for_text("p", "refused");
    drop(browser);
    let lines = process.stop();
    assert!(!lines.iter().any(|line| line.contains("Proxy detector reset")), "{lines:#?}");
}

/// However many rows are parked, each can be reached; and on a phone the answer to a button is on the screen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_can_be_reached_and_the_answer_seen() {
    let device = Device::new().await;
    let sql = |sql: &str| shell::sqlite3_shell(device.path(), sql);
    sql("CREATE TABLE note (id INTEGER PRIMARY KEY, stars);");
    device.proxy.start();
    let (process, address) = serving(&mut device.command());
    device.wait_until_equal(&["note"]).await;
    device.cloud.execute_batch("ALTER TABLE note ADD CONSTRAINT none CHECK (id < 0)").await;
    sql(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 53) INSERT INTO note SELECT i, i FROM n;",
    );
    device.wait_for_status("all are parked", |status| status["sync"]["parked"] == 53);
    let token = std::fs::read_to_string(device.folder.path().join("shop.db.token")).unwrap();
    let browser = Browser::start();
    browser.open(&format!("http://{address}/"));
    browser.enter("#token", token.trim_end());
    browser.press("#token-form button");
    browser.wait_for_text("#parked-text", "Here are 1 to 50 of 53.");
    let keys = || {
        browser.script(
            "return [...document.querySelectorAll('#parked-list h3')].map(it => it.textContent).join()",
        )
    };
    let first = keys();
    browser.press("#parked-more");
    browser.wait_for_text("#parked-text", "Here are 51 to 53 of 53.");
    assert_eq!(keys().as_str().unwrap().matches("No. ").count(), 3);
    assert!(browser.script("return document.querySelector('#parked-more').hidden").as_bool().unwrap());
    browser.resize(360, 640);
    browser.press("#parked-list article:last-child [data-key^=retry]");
    browser.wait_for_text("#said", "1 row waits to be sent again");
    let seen = "const it = document.querySelector('#said').getBoundingClientRect(); return it.top >= 0 && it.bottom <= innerHeight";
    assert_eq!(browser.script(seen), true);
    browser.press("#parked-first");
    browser.wait_for_text("#parked-text", "Here are 1 to 50 of 53.");
    assert_eq!(keys(), first);
    drop(browser);
    process.stop();
}

/// Where others than this machine's may ask, the page shows nothing before it has the token, does not say how the files here are
/// called, and then goes on by itself.
#[test]
fn elsewhere_the_page_waits_for_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let (mut command, _nobody) = alone(folder.path());
    command.env("TIDEWATER_HTTP__LISTEN", "0.0.0.0:0").env("TIDEWATER_HTTP__ALLOW_REMOTE", "true");
    let process = Process::ready(&mut command);
    let port = port_of(&process);
    let token = std::fs::read_to_string(folder.path().join("alone.db.token")).unwrap();
    let browser = Browser::start();
    browser.open(&format!("http://127.0.0.1:{port}/"));
    browser.wait_for_text("#connection", "takes the token");
    assert!(!browser.text("body").contains("alone.db") && !browser.text("body").contains("running"));
    browser.enter("#token", token.trim_end());
    browser.press("#token-form button");
    browser.wait_for_text("#connection", "Cloud SQL is unavailable");
    browser.wait_for_text("#process", "alone.db");
    browser.wait_for_text("#actors", "running");
    process.stop();
}
