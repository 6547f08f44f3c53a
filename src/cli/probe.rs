//! `probe`: ask a running `serve` whether it lives or can work; for images without a shell and without curl.
//!
//! **Invariant:** it needs no setting beside PORT and connects to nothing but the address it asks.

use std::{io, time::Duration};

use clap::Args;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::error::Exit;

/// Where `serve` listens unless it is told otherwise.
pub(super) const DEFAULT_PORT: u16 = 8080;

/// Most that is read of an answer; those of `/health` and `/ready` have some hundred bytes.
const ANSWER_BYTES: u64 = 16 * 1024;

/// How much of an answer an error shows.
const SHOWN_CHARS: usize = 200;

const EXAMPLES: &str = "\
Examples:
  agent-executor probe                             does the process in this container live?
  agent-executor probe --ready                     can it take jobs?
  agent-executor probe --url http://agent-executor:8080 --ready

As the health check of a container:
  HEALTHCHECK CMD [\"agent-executor\", \"probe\"]

Exit codes:
  0 yes    1 no, or no answer in time";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Ask whether it can take jobs (`/ready`) and not only whether it lives (`/health`)
    #[arg(long)]
    ready: bool,
    /// Where it listens; else this host and the setting PORT
    #[arg(long, value_name = "URL", value_parser = authority)]
    url: Option<String>,
    /// Longest wait for the answer
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=300))]
    timeout: u64,
}

/// Why the answer is no.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Nobody answers there.
    #[error("{address} cannot be reached")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody answered in time.
    #[error("{address} did not answer within {seconds} s")]
    Timeout {
        /// Where.
        address: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// It says no.
    #[error("{address}{path} answered {answer}")]
    Negative {
        /// Where.
        address: String,
        /// What was asked.
        path: &'static str,
        /// Its status line and body, cut.
        answer: String,
    },
}

/// `host:port` of an address without a path; the port is 80 unless given.
fn authority(url: &str) -> Result<String, &'static str> {
    let rest = url.strip_prefix("http://").ok_or("must be http://HOST[:PORT]")?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    // What would end the header or the request line must not get into them.
    if rest.is_empty() || rest.contains(|c: char| c.is_whitespace() || c.is_control() || "/?#@".contains(c)) {
        return Err("must be http://HOST[:PORT]");
    }
    let after_brackets = rest.rsplit_once(']').map_or(rest, |(_, after)| after);
    Ok(if after_brackets.contains(':') { rest.to_owned() } else { format!("{rest}:80") })
}

/// Asks the address of the arguments, else `port` of this host.
pub(super) async fn run(arguments: &Arguments, port: u16) -> Result<Exit, Error> {
    let address = arguments.url.clone().unwrap_or_else(|| format!("127.0.0.1:{port}"));
    let path = if arguments.ready { "/ready" } else { "/health" };
    let seconds = arguments.timeout;
    let asked = timeout(Duration::from_secs(seconds), ask(&address, path)).await;
    let answer = match asked {
        Err(_) => return Err(Error::Timeout { address, seconds }),
        Ok(Err(source)) => return Err(Error::Unreachable { address, source }),
        Ok(Ok(answer)) => answer,
    };
    if says_yes(&answer) {
        return Ok(Exit::Success);
    }
    let answer = shown(&answer);
    Err(Error::Negative { address, path, answer })
}

async fn ask(address: &str, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn says_yes(answer: &str) -> bool {
    let status = answer.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1));
    status == Some("200")
}

/// The status and the body on one line.
fn shown(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.lines().next().unwrap_or_default();
    let status = status.split_once(' ').map_or("nothing that is HTTP", |(_, status)| status);
    let text: String = format!("{status} {body}").chars().take(SHOWN_CHARS).collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn only_an_address_without_a_path_is_taken() {
        assert_eq!(authority("http://h:1/").as_deref(), Ok("h:1"));
        assert_eq!(authority("http://h").as_deref(), Ok("h:80"));
        assert_eq!(authority("http://[::1]").as_deref(), Ok("[::1]:80"));
        assert_eq!(authority("http://[::1]:8080").as_deref(), Ok("[::1]:8080"));
        for wrong in ["h:1", "https://h", "http://", "http://h/x", "http://h\r\nx", "http://u@h"] {
            assert!(authority(wrong).is_err(), "{wrong:?}");
        }
    }

    /// Answers one request with `answer`, and gives what was asked.
    async fn answered(answer: &str, ready: bool) -> (Result<Exit, Error>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let serve = async {
            let (mut stream, _) = listener.accept().await.expect("asked");
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.expect("a request");
            stream.write_all(answer.as_bytes()).await.expect("answered");
            String::from_utf8_lossy(&request[..length]).into_owned()
        };
        let arguments = Arguments { ready, url: None, timeout: 30 };
        tokio::join!(run(&arguments, port), serve)
    }

    #[tokio::test]
    async fn a_200_is_yes_and_anything_else_is_no_with_its_words() {
        let (exit, asked) = answered("HTTP/1.1 200 OK\r\n\r\n{}", false).await;
        assert_eq!(exit.expect("yes"), Exit::Success);
        assert!(asked.starts_with("GET /health HTTP/1.1\r\n"), "{asked}");
        let (exit, asked) = answered("HTTP/1.1 503 Service Unavailable\r\n\r\n{\"nats\":false}", true).await;
        let error = exit.expect_err("no").to_string();
        assert!(error.ends_with("/ready answered 503 Service Unavailable {\"nats\":false}"), "{error}");
        assert!(asked.starts_with("GET /ready HTTP/1.1\r\n"), "{asked}");
        let (exit, _) = answered("nonsense", false).await;
        assert!(matches!(exit, Err(Error::Negative { .. })), "{exit:?}");
    }

    #[tokio::test]
    async fn nobody_there_is_no() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        drop(listener);
        let arguments = Arguments { ready: false, url: None, timeout: 30 };
        let error = run(&arguments, port).await.expect_err("nobody listens");
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    }
}
