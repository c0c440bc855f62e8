//! An agent in a thread of the test: it answers what the test says, and remembers what it was asked.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::{env, fs, process, thread};

/// What it does with a request.
pub enum Answer {
    /// Sends this and waits for the next request.
    Send(String),
    /// Sends this and closes the connection.
    Last(String),
    /// Sends this and holds the connection open.
    Hold(String),
}

/// Which connection a request came on, and its bytes.
pub type Seen = (usize, String);

pub struct Fake {
    pub path: PathBuf,
    folder: PathBuf,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Fake {
    /// `answer` is told the connection's number, the request's number on it, and the request.
    pub fn start(answer: impl Fn(usize, usize, &str) -> Answer + Send + Sync + 'static) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = env::temp_dir().join(format!("keyhatch-test-{}-{number}", process::id()));
        fs::create_dir(&folder).unwrap();
        let path = folder.join("keyhatch.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (answer, noted) = (Arc::new(answer), seen.clone());
        thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                let (answer, noted, stream) = (answer.clone(), noted.clone(), stream.unwrap());
                thread::spawn(move || serve(connection, &stream, &*answer, &noted));
            }
        });
        Self { path, folder, seen }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn serve(
    connection: usize,
    mut stream: &UnixStream,
    answer: &dyn Fn(usize, usize, &str) -> Answer,
    seen: &Mutex<Vec<Seen>>,
) {
    let mut reader = BufReader::new(stream);
    for number in 0.. {
        let Some(request) = read(&mut reader) else {
            return;
        };
        seen.lock().unwrap().push((connection, request.clone()));
        let (bytes, close) = match answer(connection, number, &request) {
            Answer::Send(bytes) => (bytes, false),
            Answer::Last(bytes) => (bytes, true),
            Answer::Hold(bytes) => {
                let _ = stream.write_all(bytes.as_bytes());
                let _ = read(&mut reader);
                return;
            }
        };
        if stream.write_all(bytes.as_bytes()).is_err() || close {
            return;
        }
    }
}

fn read(reader: &mut BufReader<&UnixStream>) -> Option<String> {
    let mut request = String::new();
    while !request.ends_with("\r\n\r\n") {
        if reader.read_line(&mut request).ok()? == 0 {
            return None;
        }
    }
    if let Some((_, length)) = request.split_once("Content-Length: ") {
        let length = length.lines().next()?.parse().ok()?;
        let mut body = vec![0; length];
        std::io::Read::read_exact(reader, &mut body).ok()?;
        request.push_str(&String::from_utf8(body).ok()?);
    }
    Some(request)
}

pub fn ok(headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: {length}\r\n\r\n{body}")
}

pub fn value(version: &str, value: &str) -> String {
    ok(&format!("Keyhatch-Version: {version}\r\n"), value)
}

pub fn problem(status: u16, code: &str) -> String {
    let body = format!(
        r#"{{"type":"t","title":"t","status":{status},"code":"{code}","request_id":"r-1"}}"#
    );
    let length = body.len();
    format!("HTTP/1.1 {status} x\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// The beginning of an event stream, with these events: id, kind and version of the secret `a`.
pub fn stream(events: &[(&str, &str, &str)]) -> String {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
        Transfer-Encoding: chunked\r\n\r\n3\r\n:\n\n\r\n";
    let chunk = |(id, kind, version): &(&str, &str, &str)| {
        let event = format!(
            "id: {id}\nevent: {kind}\ndata: {{\"name\":\"a\",\"version\":\"{version}\"}}\n\n"
        );
        format!("{:x}\r\n{event}\r\n", event.len())
    };
    head.to_string() + &events.iter().map(chunk).collect::<Vec<_>>().concat()
}
