//! A server that gives canned answers, byte by byte as told.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::mpsc::{self, Receiver, Sender},
    thread,
};

use serde_json::Value as Json;

/// One thing the server does after it has read a request.
#[derive(Clone, Debug)]
pub(in crate::model) enum Step {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Sends nothing until the client hangs up; reports that.
    AwaitHangUp,
}

/// What the server saw.
#[derive(Debug)]
pub(in crate::model) enum Seen {
    /// A request: its head in lower case, and its body.
    Request(String, Json),
    /// The client hung up.
    HangUp,
}

/// A running server; it ends when all answers are given.
pub(in crate::model) struct Server {
    pub(in crate::model) url: String,
    pub(in crate::model) seen: Receiver<Seen>,
}

impl Server {
    /// Answers one connection after the other; the connection is closed after each answer.
    pub(in crate::model) fn start(answers: Vec<Vec<Step>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/v1", listener.local_addr().expect("bound"));
        let (sender, seen) = mpsc::channel();
        thread::spawn(move || {
            for answer in answers {
                let (stream, _) = listener.accept().expect("a connection");
                give(stream, answer, &sender);
            }
        });
        Self { url, seen }
    }

    /// Waits until the client has hung up, after its request; the runtime goes on meanwhile to close the
    /// connection.
    pub(in crate::model) async fn hang_up(self) {
        self.request();
        let seen = tokio::task::spawn_blocking(move || self.seen.recv()).await.expect("not cancelled");
        assert!(matches!(seen, Ok(Seen::HangUp)), "the connection stays open");
    }

    /// The next request it saw.
    pub(in crate::model) fn request(&self) -> (String, Json) {
        match self.seen.recv().expect("the server runs") {
            Seen::Request(head, body) => (head, body),
            Seen::HangUp => panic!("the client hung up"),
        }
    }
}

fn give(mut stream: TcpStream, answer: Vec<Step>, seen: &Sender<Seen>) {
    let (head, body) = read_request(&stream);
    // The test may have ended and dropped its end.
    let _ = seen.send(Seen::Request(head, body));
    for step in answer {
        match step {
            Step::Send(bytes) => {
                if stream.write_all(&bytes).is_err() {
                    return;
                }
            }
            Step::AwaitHangUp => {
                let _ = stream.read(&mut [0]);
                let _ = seen.send(Seen::HangUp);
            }
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

fn read_request(stream: &TcpStream) -> (String, Json) {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a request");
        let line = line.to_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a number");
        }
        if line.trim().is_empty() {
            break;
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("the body");
    (head, serde_json::from_slice(&body).expect("a JSON body"))
}

/// A whole answer, its body in chunks of `size` bytes.
pub(in crate::model) fn answer(status: u16, headers: &[&str], body: &[u8], size: usize) -> Vec<Step> {
    let mut steps = cut(status, headers, body, size);
    steps.push(Step::Send(b"0\r\n\r\n".to_vec()));
    steps
}

/// An answer whose connection is closed before its end.
pub(in crate::model) fn cut(status: u16, headers: &[&str], body: &[u8], size: usize) -> Vec<Step> {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let head = format!(
        "HTTP/1.1 {status} Status\r\n{headers}transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    );
    let chunk = |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    let chunks = body.chunks(size).map(chunk);
    std::iter::once(head.into_bytes()).chain(chunks).map(Step::Send).collect()
}
