//! Chromium without a screen, by its driver: a few requests of plain HTTP and JSON are all that it takes.
//!
//! The driver lives behind a guard process, as [`crate::postgres`] does; Chromium ends with it, and both are gone however the
//! tests end.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::postgres::{Account, Guard, tail};
use crate::wait;

/// `$1`: the driver, `$2`: the folder. Requests come line by line, each is answered by one line.
const GUARD: &str = r#"
trap '' HUP INT TERM PIPE
program=$1 dir=$2 pid=
cd "$dir" || exit 1
while read -r request; do
    case $request in
    start) ( trap - HUP INT TERM PIPE
             exec env HOME="$dir" TMPDIR="$dir" "$program" --port=0 ) </dev/null >>"$dir/driver.log" 2>&1 &
           pid=$!; echo "$pid" ;;
    esac
done
[ -z "$pid" ] || { kill -s KILL "$pid" 2>/dev/null; wait "$pid"; }
cd /
# Chromium may take a moment to notice.
looks=0
while ! rm -rf "$dir" 2>/dev/null && [ "$looks" -lt 50 ]; do sleep 0.1; looks=$((looks + 1)); done
"#;

const MISSING: &str =
    "was not found: run `make test`, which installs it, or `apt-get install chromium chromium-driver`";

/// No account, no updates, nothing asked of anybody: only what a test opens.
const FLAGS: [&str; 13] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--window-size=1200,900",
];

/// A browser and what it answers takes a while on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The name of an element in the driver's answers, as its protocol has it.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one window and a profile of its own.
#[derive(Debug)]
pub struct Browser {
    driver: SocketAddr,
    session: String,
    folder: PathBuf,
    _guard: Guard,
}

impl Browser {
    /// Starts one.
    ///
    /// # Panics
    /// When it is not installed (with the remedy), or does not start.
    pub fn start() -> Browser {
        let driver = program("chromedriver").unwrap_or_else(|| panic!("chromedriver {MISSING}"));
        let chromium = program("chromium").unwrap_or_else(|| panic!("Chromium {MISSING}"));
        let account = Account::of_server();
        let folder = account.create_folder();
        let mut guard = Guard::spawn(GUARD, &driver, &folder, &account);
        guard.ask("start");
        let log = folder.join("driver.log");
        let port = wait::until_blocking("the driver listens", PATIENCE, || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let port = said.rsplit_once("successfully on port ").and_then(|(_, rest)| rest.split_once('.'));
            port.and_then(|(port, _)| port.parse().ok()).ok_or_else(|| tail(&log))
        });
        let profile = format!("--user-data-dir={}", folder.join("profile").display());
        let flags: Vec<_> = FLAGS.into_iter().chain([&*profile]).collect();
        let asked = json!({ "capabilities": { "alwaysMatch": {
            "goog:loggingPrefs": { "browser": "ALL" },
            "goog:chromeOptions": { "binary": chromium, "args": flags },
        } } });
        let mut browser = Browser {
            driver: (Ipv4Addr::LOCALHOST, port).into(),
            session: String::new(),
            folder,
            _guard: guard,
        };
        let begun = browser.ask("POST", "/session", &asked);
        browser.session = begun["sessionId"].as_str().unwrap_or_else(|| panic!("{begun}")).to_owned();
        browser
    }

    /// Opens a page, and returns when it has loaded.
    pub fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// What a script returns.
    pub fn script(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// The text of the first element that a selector finds, as somebody sees it.
    pub fn text(&self, selector: &str) -> String {
        let text = self.on(selector, "GET", "text", &Value::Null);
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the text of an element is such.
    pub fn wait_for_text(&self, selector: &str, part: &str) {
        wait::until_blocking(&format!("{selector} says {part:?}"), PATIENCE, || {
            let text = self.text(selector);
            if text.contains(part) { Ok(()) } else { Err(text) }
        });
    }

    /// Waits until a script returns `true`.
    pub fn wait_until(&self, what: &str, script: &str) {
        wait::until_blocking(what, PATIENCE, || match self.script(script) {
            Value::Bool(true) => Ok(()),
            other => Err(other.to_string()),
        });
    }

    /// Presses a button as a person does: it has to be there, and nothing before it.
    pub fn press(&self, selector: &str) {
        self.on(selector, "POST", "click", &json!({}));
    }

    /// Types into a field.
    pub fn enter(&self, selector: &str, text: &str) {
        self.on(selector, "POST", "value", &json!({ "text": text }));
    }

    /// The width and height of the window, in the page's pixels.
    pub fn resize(&self, width: u32, height: u32) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", &metrics);
    }

    /// What the page is told that its reader prefers: `light` or `dark`.
    pub fn prefer(&self, scheme: &str) {
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", &media);
    }

    /// The page as it is seen, as a PNG.
    pub fn screenshot(&self) -> Vec<u8> {
        let taken = self.ask("GET", &format!("/session/{}/screenshot", self.session), &Value::Null);
        STANDARD.decode(taken.as_str().unwrap_or_default()).unwrap_or_else(|error| panic!("{error}: {taken}"))
    }

    /// What the browser had to say of the page since it was asked last.
    pub fn console(&self) -> Vec<String> {
        let said = self.post("/se/log", &json!({ "type": "browser" }));
        let lines = said.as_array().unwrap_or_else(|| panic!("{said}"));
        lines.iter().map(|line| line["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.post("/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    /// Something about the first element that a selector finds; again where the page has put another one in its place meanwhile.
    fn on(&self, selector: &str, method: &str, what: &str, body: &Value) -> Value {
        wait::until_blocking(&format!("{what} of {selector}"), PATIENCE, || {
            let found = self.post("/element", &json!({ "using": "css selector", "value": selector }));
            let element = found[ELEMENT].as_str().unwrap_or_else(|| panic!("{selector}: {found}"));
            let path = format!("/session/{}/element/{element}/{what}", self.session);
            match self.try_ask(method, &path, body) {
                Err(error) if error["error"] == "stale element reference" => Err(error.to_string()),
                Err(error) => panic!("the browser, {what} of {selector}: {error:#}"),
                Ok(value) => Ok(value),
            }
        })
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        self.ask("POST", &format!("/session/{}{path}", self.session), body)
    }

    /// One request, and the value of its answer.
    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        self.try_ask(method, path, body)
            .unwrap_or_else(|error| panic!("the browser, {method} {path} {body}: {error:#}"))
    }

    /// The error is the browser's.
    fn try_ask(&self, method: &str, path: &str, body: &Value) -> Result<Value, Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = exchange(self.driver, method, path, &body).unwrap_or_else(|error| {
            let log = tail(&self.folder.join("driver.log"));
            panic!("the browser's driver, {method} {path} {body}: {error}\n{log}")
        });
        let value = answer["value"].clone();
        if value["error"].is_null() { Ok(value) } else { Err(value) }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // An orderly end; the guard sees to the rest.
        let _ = exchange(self.driver, "DELETE", &format!("/session/{}", self.session), "");
    }
}

fn exchange(driver: SocketAddr, method: &str, path: &str, body: &str) -> std::io::Result<Value> {
    let mut stream = TcpStream::connect(driver)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {driver}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().map_err(std::io::Error::other)?;
            }
            _ if line.trim_end().is_empty() => break,
            _ => {}
        }
    }
    let mut text = vec![0; length];
    reader.read_exact(&mut text)?;
    serde_json::from_slice(&text).map_err(std::io::Error::other)
}

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/bin")]);
    folders.map(|folder| folder.join(name)).find(|program| Path::is_file(program))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page is opened, read, typed into and pressed, and a picture of it is one; nothing is left in the end.
    #[test]
    fn a_browser_shows_a_page_and_leaves_nothing_behind() {
        let browser = Browser::start();
        let folder = browser.folder.clone();
        browser.open("data:text/html,<title>t</title><input><button onclick=\"this.textContent=document.querySelector('input').value\">go");
        assert_eq!(browser.text("button"), "go");
        browser.enter("input", "gone");
        browser.press("button");
        browser.wait_for_text("button", "gone");
        assert_eq!(browser.script("return document.title"), "t");
        browser.resize(400, 300);
        assert_eq!(browser.script("return innerWidth"), 400);
        assert!(browser.screenshot().starts_with(b"\x89PNG"));
        assert_eq!(browser.console(), Vec::<String>::new());
        drop(browser);
        assert!(!folder.exists(), "{}", folder.display());
    }
}
