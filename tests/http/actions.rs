//! What the verbs do, over HTTP: for whoever has the token, and for nobody else.

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use tidewater_test_support::{shell, wait};

use crate::client::{Answer, answer_of, ask, connect, exchange, get, get_with, post, post_with};
use crate::process::{Device, PATIENCE, Process, output};
use crate::{LISTENS, alone, serving};

const ACTIONS: [(&str, &str); 7] = [
    ("/check", "{}"),
    ("/reset", "{}"),
    ("/flush", "{}"),
    ("/warm", "{}"),
    ("/parked/retry", "{\"which\":\"all\"}"),
    ("/parked/discard", "{\"ids\":[1]}"),
    ("/conflicts/restore", "{\"ids\":[1]}"),
];

/// A device with a row that the cloud refuses and a value that lost a conflict; nothing comes from the cloud by itself.
struct Scene {
    device: Device,
    process: Process,
    address: SocketAddr,
    token: String,
}

impl Scene {
    async fn new() -> Self {
        let device = Device::new().await;
        shell::sqlite3_shell(
            device.path(),
            "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT, stars INTEGER);
             INSERT INTO note VALUES (1, 'base', 3), (2, 'untouched', 5);",
        );
        device.proxy.start();
        let (process, address) = serving(&mut patient(&device));
        device.wait_until_equal(&["note"]).await;
        device.cloud.execute_batch("ALTER TABLE note ADD CONSTRAINT five_at_most CHECK (stars <= 5)").await;
        shell::sqlite3_shell(device.path(), "INSERT INTO note VALUES (3, '<b>too</b> good', 6);");
        device.wait_for_status("a row is parked", |status| {
            (&status["sync"]["parked"], &status["sync"]["pending"]) == (&json!(1), &json!(0))
        });
        device.proxy.stop();
        device.wait_for_status("it is offline", |status| status["sync"]["state"] == "offline");
        shell::sqlite3_shell(device.path(), "UPDATE note SET body = 'here' WHERE id = 1;");
        device.cloud.execute_batch("UPDATE note SET body = 'there' WHERE id = 1").await;
        device.proxy.start();
        device.wait_for_status("a conflict is decided", |status| {
            (&status["sync"]["conflicts"], &status["sync"]["pending"]) == (&json!(1), &json!(0))
        });
        let token = token_in(&device);
        Self { device, process, address, token }
    }

    fn post(&self, path: &str, body: &str) -> Answer {
        post(self.address, &self.token, path, body)
    }

    fn get(&self, path: &str) -> Answer {
        get_with(self.address, &self.token, path)
    }

    /// What a verb prints.
    fn verb(&self, verb: &[&str]) -> String {
        let printed = output(self.device.command().args(verb).arg("--json"));
        assert!(printed.stderr.is_empty(), "{}", String::from_utf8_lossy(&printed.stderr));
        String::from_utf8(printed.stdout).unwrap()
    }

    fn sql(&self, sql: &str) -> String {
        shell::sqlite3_shell(self.device.path(), sql)
    }

    /// Everything that an action could change.
    fn everything(&self) -> Vec<String> {
        let status = self.device.status().unwrap();
        // Checks and cycles go on by themselves.
        let counts =
            ["pending", "parked", "conflicts", "rows_flushed", "rows_warmed"].map(|it| &status["sync"][it]);
        let rows = self.sql("SELECT * FROM note ORDER BY id;");
        vec![self.verb(&["parked"]), self.verb(&["conflicts"]), json!(counts).to_string(), rows]
    }
}

/// What others write is looked for when somebody asks.
fn patient(device: &Device) -> Command {
    let mut command = device.command();
    command.env("TIDEWATER_SYNC__PULL_INTERVAL_S", "600").env("TIDEWATER_SYNC__FEED_POLL_INTERVAL_S", "600");
    command
}

fn token_file(device: &Device) -> PathBuf {
    device.folder.path().join("shop.db.token")
}

fn token_in(device: &Device) -> String {
    std::fs::read_to_string(token_file(device)).unwrap().trim_end().to_owned()
}

/// Without the token, by another name, from another page, as a form, too large or too slow: refused, each with a reason of its
/// own, and nothing has changed. The token is in no line of the log and in no answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_may_not_act_changes_nothing() {
    let scene = Scene::new().await;
    let (address, port, token) = (scene.address, scene.address.port(), scene.token.clone());
    let before = scene.everything();

    let json = "Content-Type: application/json\r\n";
    let bearer = format!("Authorization: Bearer {token}\r\n");
    let short = &token[..token.len() - 1];
    let other = token.replace(|digit: char| digit.is_ascii_digit(), "a");
    let mut answers = vec![];
    for (path, body) in ACTIONS {
        let mut refused = |path: &str, headers: &str, body: &str, statuses: &[u16]| {
            let answer = post_with(address, path, headers, body);
            assert!(statuses.contains(&answer.status), "{path} {headers}{body}: {answer:?}");
            answers.push(answer);
        };
        // No token, another one, or the right one in a wrong place.
        for header in [
            String::new(),
            "Authorization: Bearer\r\n".to_owned(),
            "Authorization: Bearer \r\n".to_owned(),
            format!("Authorization: {token}\r\n"),
            format!("Authorization: Basic {token}\r\n"),
            format!("Authorization: Bearer {short}\r\n"),
            format!("Authorization: Bearer {token}0\r\n"),
            format!("Authorization: Bearer {other}\r\n"),
            format!("Authorization: Bearer {}\r\n", token.to_uppercase()),
            format!("Authorization: Bearer {token} {token}\r\n"),
            format!("{bearer}{bearer}"),
            format!("Cookie: token={token}\r\n"),
            format!("X-Token: {token}\r\n"),
        ] {
            refused(path, &format!("{json}{header}"), body, &[401]);
        }
        refused(&format!("{path}?token={token}"), json, body, &[401]);
        refused(path, json, &format!("{{\"token\":\"{token}\",\"ids\":[1],\"which\":\"all\"}}"), &[401]);
        // Another page, with everything else right.
        for origin in [
            "null".to_owned(),
            "http://evil.example".to_owned(),
            format!("http://evil.example:{port}"),
            format!("http://localhost:{port}"),
            "http://127.0.0.1".to_owned(),
            format!("http://127.0.0.1:{port}.evil.example"),
        ] {
            refused(path, &format!("{json}{bearer}Origin: {origin}\r\n"), body, &[403]);
        }
        let both = format!("Origin: http://{address}\r\nOrigin: http://evil.example\r\n");
        refused(path, &format!("{json}{bearer}{both}"), body, &[403]);
        // What a form can send, and nothing.
        for kind in [
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "text/plain",
            "text/plain; x=application/json",
        ] {
            refused(path, &format!("{bearer}Content-Type: {kind}\r\n"), body, &[415]);
        }
        refused(path, &bearer, body, &[415]);
        refused(path, &format!("{bearer}{json}Content-Type: text/plain\r\n"), body, &[415]);
        // Bodies that are none.
        for body in ["", "{", "[]", "null", "{\"which\":3,\"ids\":3,\"wait\":3} {}"] {
            refused(path, &format!("{bearer}{json}"), body, &[400]);
        }
        // One that is too large, announced or not.
        let large = format!("{{\"ids\":[{}1]}}", "1,".repeat(40_000));
        refused(path, &format!("{bearer}{json}"), &large, &[413]);
        let chunked = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\n{bearer}{json}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n0\r\n\r\n",
            large.len()
        );
        // A connection that is cut while it sends may not see the answer.
        if let Some(answer) = exchange(address, chunked.as_bytes()) {
            assert_eq!(answer.status, 413, "{path}: {answer:?}");
        }
        // Another name.
        for (host, status) in
            [("evil.example", 421), (&*format!("localhost.evil.example:{port}"), 421), ("", 421)]
        {
            let head = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\n{bearer}{json}");
            let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
            let answer = exchange(address, request.as_bytes()).unwrap();
            assert_eq!(answer.status, status, "{request}: {answer:?}");
        }
        // Another method.
        for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"] {
            let answer = ask(address, method, path, &bearer);
            assert_eq!((answer.status, answer.header("Allow")), (405, Some("POST")), "{method} {path}");
            assert_eq!(answer.header("Access-Control-Allow-Origin"), None);
        }
        // Another path, dressed up as this one.
        for path in [
            format!("{path}/"),
            format!("/{path}"),
            format!("/status/..{path}"),
            format!("/.{path}"),
            format!("{path}%00"),
            format!("{path};x"),
            format!("/%2e%2e{path}"),
            path.to_uppercase(),
        ] {
            refused(&path, &format!("{bearer}{json}"), body, &[400, 404, 405]);
        }
    }
    for path in ["/parked", "/conflicts"] {
        for (headers, status) in [
            (String::new(), 401),
            (format!("Authorization: Bearer {short}\r\n"), 401),
            (format!("{bearer}Origin: http://evil.example\r\n"), 403),
            (format!("{bearer}Content-Length: 2\r\n"), 413),
        ] {
            let answer = ask(address, "GET", path, &headers);
            assert_eq!(answer.status, status, "{path} {headers}{answer:?}");
            assert!(!answer.body.contains("note"), "{answer:?}");
            answers.push(answer);
        }
        assert_eq!(ask(address, "GET", &format!("{path}?token={token}"), "").status, 401);
        let request = format!("GET {path} HTTP/1.1\r\nHost: evil.example\r\n{bearer}\r\n");
        assert_eq!(exchange(address, request.as_bytes()).unwrap().status, 421);
        assert_eq!(post_with(address, path, &format!("{bearer}{json}"), "{}").status, 405);
    }
    for answer in &answers {
        assert_eq!(answer.header("WWW-Authenticate"), (answer.status == 401).then_some("Bearer"));
        assert!(!answer.body.contains(token.as_str()) && !answer.head.contains(token.as_str()), "{answer:?}");
        assert_eq!(answer.header("Cache-Control"), Some("no-store"));
    }

    assert_eq!(scene.everything(), before);
    let lines = scene.process.stop();
    assert!(!lines.iter().any(|line| line.contains(token.as_str())), "{lines:#?}");
    // A reset would say so.
    assert!(!lines.iter().any(|line| line.contains("Proxy detector reset")), "{lines:#?}");
}

/// Whoever is about to send the token can ask for a proof that it is known here; that is another one for each nonce, tells nothing
/// of it, and is nobody's who has none.
#[test]
fn the_token_is_proven_without_being_told() {
    let folder = tempfile::tempdir().unwrap();
    let (mut command, _nobody) = alone(folder.path());
    let (process, address) = serving(&mut command);
    let token = std::fs::read_to_string(folder.path().join("alone.db.token")).unwrap();
    let proof = |nonce: &str| {
        let answer = get(address, &format!("/proof?nonce={nonce}"));
        assert_eq!((answer.status, answer.header("Cache-Control")), (200, Some("no-store")), "{answer:?}");
        assert!(!answer.body.contains(token.trim_end()), "{answer:?}");
        answer.json()["proof"].as_str().unwrap().to_owned()
    };
    let (one, other) = ("0".repeat(64), "1".repeat(64));
    assert_eq!(proof(&one).len(), 64);
    assert_eq!(proof(&one), proof(&one));
    assert_ne!(proof(&one), proof(&other));
    for query in [
        "",
        "?nonce=",
        "?nonce=0",
        "?nonce=zz",
        &format!("?nonce={}", "0".repeat(129)),
        &format!("?nonce={one}&x=1"),
    ] {
        assert_eq!(get(address, &format!("/proof{query}")).status, 400, "{query}");
    }
    let request = format!("GET /proof?nonce={one} HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    assert_eq!(exchange(address, request.as_bytes()).unwrap().status, 421);
    process.stop();

    let (mut command, _nobody) = alone(folder.path());
    let (process, address) = serving(command.env("TIDEWATER_HTTP__TOKEN_FILE", "off"));
    assert_eq!(get(address, &format!("/proof?nonce={one}")).status, 404);
    process.stop();
}

/// A body that does not come is given the time of a request and no more.
#[test]
fn a_slow_body_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let (mut command, _nobody) = alone(folder.path());
    let (process, address) = serving(command.env("TIDEWATER_HTTP__REQUEST_TIMEOUT_S", "0.5"));
    let token = std::fs::read_to_string(folder.path().join("alone.db.token")).unwrap();
    let head = format!(
        "POST /flush HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n",
        token.trim_end()
    );
    let mut stream = connect(address);
    write!(stream, "{head}Content-Length: 20\r\n\r\n{{\"wait\"").unwrap();
    let answer = answer_of(&mut stream).unwrap();
    assert_eq!(answer.status, 408, "{answer:?}");
    process.stop();
}

/// With the token each action does what its verb does, and answers what that prints; what could not be done is said with
/// whether asking again can help. The lists are those of the command.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_action_does_what_its_verb_does() {
    let scene = Scene::new().await;
    let (device, address, token) = (&scene.device, scene.address, scene.token.clone());

    for list in ["parked", "conflicts"] {
        let answer = scene.get(&format!("/{list}"));
        assert_eq!((answer.status, answer.header("Content-Type")), (200, Some("application/json")));
        assert_eq!(answer.body, scene.verb(&[list]));
        assert_eq!(answer.json()["total"], 1, "{answer:?}");
        assert_eq!(scene.get(&format!("/{list}?table=NOTE&limit=1")).body, answer.body);
        assert_eq!(scene.get(&format!("/{list}?table=nowhere")).json()["total"].as_u64().unwrap_or(0), 0);
        for query in ["limit=0", "limit=1001", "limit=x", "page=2", "limit=1&limit=2"] {
            assert_eq!(scene.get(&format!("/{list}?{query}")).status, 400, "{query}");
        }
        let own = format!("Authorization: bearer  {token}\r\nOrigin: http://{address}\r\n");
        assert_eq!(ask(address, "GET", &format!("/{list}"), &own).status, 200);
    }
    let parked = scene.get("/parked").json()["rows"][0].clone();
    assert_eq!((&parked["values"]["body"], &parked["tries"]), (&json!("<b>too</b> good"), &json!(1)));
    let id = &parked["id"];
    assert_eq!(scene.get(&format!("/parked?after={id}")).json()["rows"], json!([]));

    let checked = scene.post("/check", "{}");
    assert_eq!((checked.status, &checked.json()["status"]), (200, &json!("available")), "{checked:?}");
    assert_eq!(checked.json()["proxy_required"], false);

    // What others wrote comes when it is asked for; nobody would look by himself for ten minutes. The feed is read up to the
    // oldest transaction that is under way on the server, and other tests have theirs.
    device.cloud.execute_batch("INSERT INTO note VALUES (10, 'from elsewhere', 1)").await;
    wait::until_blocking("what others wrote is here", PATIENCE, || {
        let warmed = scene.post("/warm", "{\"wait\":true}");
        assert_eq!((warmed.status, &warmed.json()["done"]), (200, &json!(true)), "{warmed:?}");
        let here = scene.sql("SELECT body FROM note WHERE id = 10;");
        if here == "from elsewhere\n" { Ok(()) } else { Err(format!("{warmed:?}")) }
    });
    scene.sql("UPDATE note SET body = 'edited' WHERE id = 2;");
    let flushed = scene.post("/flush", "{\"wait\":true}").json();
    assert_eq!(
        (&flushed["done"], &flushed["pending"], &flushed["parked"]),
        (&json!(true), &json!(0), &json!(1))
    );
    assert_eq!(scene.post("/flush", "{}").json()["done"], false);

    // It is still refused, and is told to be.
    let retried = scene.post("/parked/retry", &format!("{{\"which\":{{\"ids\":[{id},999]}}}}"));
    assert_eq!(retried.json(), json!({ "rows": 1, "unknown": [999] }), "{retried:?}");
    wait::until_blocking(
        "it was tried again",
        PATIENCE,
        || match scene.get("/parked").json()["rows"][0]["tries"] {
            Value::Number(ref tries) if tries.as_u64() == Some(2) => Ok(()),
            ref other => Err(other.to_string()),
        },
    );
    let nowhere = scene.post("/parked/retry", "{\"which\":{\"table\":\"nowhere\"}}");
    assert_eq!((nowhere.status, &nowhere.json()["error"]["retry"]), (422, &json!(false)), "{nowhere:?}");

    // What lost is here again, and goes to the cloud.
    let conflict = scene.get("/conflicts").json()["rows"][0].clone();
    let lost = if conflict["kept"] == "cloud" { &conflict["local"] } else { &conflict["cloud"] };
    let restored = scene.post("/conflicts/restore", &format!("{{\"ids\":[{},999]}}", conflict["id"]));
    assert_eq!(restored.json()["ids"], json!([conflict["id"]]), "{restored:?}");
    assert_eq!(restored.json()["refused"][0][0], 999);
    let body = scene.sql("SELECT body FROM note WHERE id = 1;");
    assert_eq!(body.trim_end(), lost.as_str().unwrap());

    // Without a cloud nobody knows what a discarded row becomes.
    device.proxy.stop();
    let checked = scene.post("/check", "{}").json();
    assert_eq!(checked["status"], "unavailable", "{checked}");
    device.wait_for_status("it is offline", |status| status["sync"]["state"] == "offline");
    for (path, body) in
        [("/parked/discard", format!("{{\"ids\":[{id}]}}")), ("/flush", "{\"wait\":true}".to_owned())]
    {
        let refused = scene.post(path, &body);
        let error = refused.json()["error"].clone();
        assert_eq!((refused.status, &error["retry"]), (503, &json!(true)), "{refused:?}");
        assert!(error["message"].as_str().unwrap().contains("not available"), "{refused:?}");
    }
    assert_eq!(scene.get("/parked").json()["total"], 1);
    assert_eq!(scene.post("/reset", "{}").json(), json!({ "done": true }));
    scene.process.wait_for_line("🔄 Proxy detector reset");

    device.proxy.start();
    device.wait_until_flushed();
    let discarded = scene.post("/parked/discard", &format!("{{\"ids\":[{id}]}}"));
    assert_eq!(discarded.json(), json!({ "ids": [id], "refused": [] }), "{discarded:?}");
    assert_eq!(scene.sql("SELECT count(*) FROM note WHERE id = 3;"), "0\n");
    assert_eq!(scene.get("/parked").json()["total"], 0);
    device.wait_until_equal(&["note"]).await;
    let lines = scene.process.stop();
    assert!(!lines.iter().any(|line| line.contains(token.as_str())), "{lines:#?}");
}

/// The token is made once, beside the database, for its owner alone; a file that somebody names is taken as it is. One that
/// others can read, or that holds no token, is one warning, and there are no actions; everything else works.
#[test]
fn the_token_is_its_owners() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("alone.db.token");
    let mode = || std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    let set_mode = |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    let start = |more: &[(&str, &str)]| {
        let (mut command, nobody) = alone(folder.path());
        let (process, address) = serving(command.envs(more.iter().copied()));
        (process, address, nobody)
    };

    let (process, address, _nobody) = start(&[]);
    let made = std::fs::read_to_string(&file).unwrap();
    assert_eq!((mode(), made.lines().count(), made.trim_end().len()), (0o600, 1, 64), "{made:?}");
    assert_eq!(get_with(address, made.trim_end(), "/parked").status, 200);
    let page = get(address, "/");
    assert!(page.body.contains("data-actions=\"token\"") && !page.body.contains(made.trim_end()));
    assert!(
        page.body.contains(&format!("It is in the file {}.", file.display())),
        "the page says where it is"
    );
    process.stop();

    // Another umask makes no other mode, and the same token is used again.
    let (process, address, _nobody) = start(&[]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), made);
    assert_eq!(get_with(address, made.trim_end(), "/parked").status, 200);
    process.stop();

    let own = folder.path().join("own");
    std::fs::write(&own, "a-word-of-somebody's-own-with-32-letters\n").unwrap();
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (process, address, _nobody) = start(&[("TIDEWATER_HTTP__TOKEN_FILE", own.to_str().unwrap())]);
    assert_eq!(get_with(address, "a-word-of-somebody's-own-with-32-letters", "/parked").status, 200);
    assert_eq!(get_with(address, made.trim_end(), "/parked").status, 401);
    process.stop();

    let without_actions = |process: Process, address, warnings: usize| {
        assert_eq!(get(address, "/status").status, 200);
        assert_eq!(get_with(address, made.trim_end(), "/parked").status, 404);
        assert_eq!(post(address, made.trim_end(), "/flush", "{}").status, 405);
        assert!(get(address, "/").body.contains("data-actions=\"none\""));
        let lines = process.stop();
        let warned: Vec<_> = lines.iter().filter(|line| line.contains("http.token_file")).collect();
        assert_eq!(warned.len(), warnings, "{lines:#?}");
        assert!(!lines.iter().any(|line| line.contains(made.trim_end())), "{lines:#?}");
    };
    set_mode(0o644);
    let (process, address, _nobody) = start(&[]);
    without_actions(process, address, 1);
    assert_eq!(mode(), 0o644, "it is its owner's to change");
    std::fs::write(&file, "short\n").unwrap();
    set_mode(0o600);
    let (process, address, _nobody) = start(&[]);
    without_actions(process, address, 1);
    std::fs::remove_file(&file).unwrap();
    let (process, address, _nobody) = start(&[("TIDEWATER_HTTP__TOKEN_FILE", "off")]);
    without_actions(process, address, 0);
    assert!(!file.exists());
}

/// Where one listens that anybody can reach.
pub(crate) fn port_of(process: &Process) -> u16 {
    process.wait_for_line(LISTENS);
    let lines = process.lines();
    lines.iter().find_map(|line| line.rsplit_once("0.0.0.0:")?.1.parse().ok()).unwrap()
}

/// Where others than this machine's may ask, the state takes the token as well; whether the process is well does not, but why
/// not does, and nobody listens there without a token.
#[test]
fn elsewhere_the_state_takes_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let remote = || {
        let (mut command, nobody) = alone(folder.path());
        command.env("TIDEWATER_HTTP__LISTEN", "0.0.0.0:0").env("TIDEWATER_HTTP__ALLOW_REMOTE", "true");
        (command, nobody)
    };
    let (mut command, _nobody) = remote();
    let process = Process::ready(&mut command);
    let address = SocketAddr::from(([127, 0, 0, 1], port_of(&process)));
    let token = std::fs::read_to_string(folder.path().join("alone.db.token")).unwrap();
    for (path, open) in [
        ("/", true),
        ("/healthz", true),
        ("/readyz", true),
        ("/status", false),
        ("/metrics", false),
        ("/history", false),
        ("/parked", false),
    ] {
        let answer = get(address, path);
        assert_eq!(answer.status, if open { 200 } else { 401 }, "{path}: {answer:?}");
        assert!(!answer.body.contains("alone.db"), "{path}: {answer:?}");
        assert_eq!(get_with(address, token.trim_end(), path).status, 200, "{path}");
    }
    assert_eq!(get(address, "/events").status, 401);
    process.stop();

    let (mut command, _nobody) = remote();
    let process = Process::ready(command.env("CLOUD_SQL_REQUIRE_PROXY", "true"));
    let address = SocketAddr::from(([127, 0, 0, 1], port_of(&process)));
    let unready = get(address, "/readyz");
    assert_eq!((unready.status, unready.json()), (503, json!({ "ready": false, "reasons": [] })));
    let unready = get_with(address, token.trim_end(), "/readyz").json();
    assert!(unready["reasons"][0].as_str().unwrap().contains("Cloud SQL is required"), "{unready}");
    process.stop();

    let (mut command, _nobody) = remote();
    let said = output(command.env("TIDEWATER_HTTP__TOKEN_FILE", "off"));
    let text = String::from_utf8(said.stderr).unwrap();
    assert_eq!((said.status.code(), text.lines().count()), (Some(2), 1), "{text}");
    assert!(text.contains("http.token_file"), "{text}");

    std::fs::write(folder.path().join("alone.db.token"), "short\n").unwrap();
    let (mut command, _nobody) = remote();
    let process = Process::ready(&mut command);
    process.wait_for_line("No HTTP on 0.0.0.0:0 (http.listen), which takes a token (http.token_file)");
    let lines = process.stop();
    assert!(!lines.iter().any(|line| line.contains(&format!("INFO | {LISTENS}"))), "{lines:#?}");
}
