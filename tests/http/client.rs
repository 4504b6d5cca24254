//! Requests byte by byte, and what comes back.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use crate::process::PATIENCE;

/// What the server said before it closed the connection.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A metric by its name with labels.
    pub(crate) fn metric(&self, series: &str) -> Option<f64> {
        self.body.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends these bytes, as far as they are taken, and reads until the end; nothing where there is no answer before it.
pub(crate) fn exchange(address: SocketAddr, bytes: &[u8]) -> Option<Answer> {
    let mut stream = connect(address);
    // Whoever refuses does not read everything.
    let _ = stream.write_all(bytes);
    answer_of(&mut stream)
}

/// What comes until the end.
pub(crate) fn answer_of(stream: &mut TcpStream) -> Option<Answer> {
    let mut text = vec![];
    // A connection that is reset has said what it had to say.
    let _ = stream.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// A request as any client makes it, with headers of its own (each with its line end).
pub(crate) fn ask(address: SocketAddr, method: &str, path: &str, headers: &str) -> Answer {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n");
    exchange(address, request.as_bytes()).unwrap_or_else(|| panic!("no answer to {method} {path}"))
}

pub(crate) fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, "GET", path, "")
}

/// A request for rows, with the token.
pub(crate) fn get_with(address: SocketAddr, token: &str, path: &str) -> Answer {
    ask(address, "GET", path, &format!("Authorization: Bearer {token}\r\n"))
}

/// An action, as the page asks for it.
pub(crate) fn post(address: SocketAddr, token: &str, path: &str, body: &str) -> Answer {
    let headers = format!(
        "Origin: http://{address}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    );
    post_with(address, path, &headers, body)
}

/// An action with headers of its own (each with its line end).
pub(crate) fn post_with(address: SocketAddr, path: &str, headers: &str, body: &str) -> Answer {
    let length = body.len();
    let request =
        format!("POST {path} HTTP/1.1\r\nHost: {address}\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
    exchange(address, request.as_bytes()).unwrap_or_else(|| panic!("no answer to POST {path}"))
}

/// A subscriber of `/events`.
pub(crate) struct Events {
    reader: BufReader<TcpStream>,
}

impl Events {
    pub(crate) fn follow(address: SocketAddr, path: &str) -> Self {
        Self::try_follow(address, path).unwrap()
    }

    /// The error is the first line of an answer that is none.
    pub(crate) fn try_follow(address: SocketAddr, path: &str) -> Result<Self, String> {
        let mut stream = connect(address);
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n\r\n")
            .unwrap();
        let mut events = Self { reader: BufReader::new(stream) };
        let line = events.line().unwrap_or_default();
        if line == "HTTP/1.1 200 OK" { Ok(events) } else { Err(line) }
    }

    /// The next event's name and data; nothing at the end. The sizes of the chunks are passed over.
    pub(crate) fn next(&mut self) -> Option<(String, Value)> {
        let mut name = None;
        loop {
            let line = self.line()?;
            if let Some(found) = line.strip_prefix("event: ") {
                name = Some(found.to_owned());
            } else if let Some(data) = line.strip_prefix("data: ") {
                return Some((name.expect("an event has a name"), serde_json::from_str(data).unwrap()));
            }
        }
    }

    /// Waits for an event.
    pub(crate) fn wait_for(&mut self, name: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut seen = vec![];
        loop {
            let Some((found, data)) = self.next() else { panic!("the end, after {seen:#?}") };
            if found == name && holds(&data) {
                return data;
            }
            seen.push((found, data));
        }
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(line.trim_end().to_owned()),
            // Whoever ends the process cuts the connection.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no event within {PATIENCE:?}: {error}"),
        }
    }
}
