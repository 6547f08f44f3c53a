//! The Redis protocol by hand: commands written in one go, replies counted. What a server can take at most.

use anyhow::{Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

pub(crate) struct RawRedis {
    replies: BufReader<OwnedReadHalf>,
    commands: OwnedWriteHalf,
}

/// Commands as they go over the wire.
#[derive(Clone, Default)]
pub(crate) struct Commands {
    bytes: Vec<u8>,
    count: usize,
}

impl Commands {
    pub(crate) fn push(&mut self, parts: &[&[u8]]) {
        self.bytes.extend_from_slice(format!("*{}\r\n", parts.len()).as_bytes());
        for part in parts {
            self.bytes.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
            self.bytes.extend_from_slice(part);
            self.bytes.extend_from_slice(b"\r\n");
        }
        self.count += 1;
    }

    /// What an event costs at least: an entry in its stream, a message on its channel.
    pub(crate) fn push_event(&mut self, key: &str, id: &str, entry: &[u8], message: &[u8]) {
        self.push(&[b"XADD", key.as_bytes(), b"MAXLEN", b"~", b"10000", id.as_bytes(), b"event", entry]);
        self.push(&[b"PUBLISH", key.as_bytes(), message]);
    }
}

impl RawRedis {
    pub(crate) async fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let (replies, commands) = stream.into_split();
        Ok(Self { replies: BufReader::with_capacity(64 * 1024, replies), commands })
    }

    /// Sends all commands at once and waits for all replies; none may be an error.
    pub(crate) async fn run(&mut self, commands: &Commands) -> Result<()> {
        let Self { replies, commands: out } = self;
        let (sent, read) = tokio::join!(out.write_all(&commands.bytes), skip(replies, commands.count));
        sent?;
        read
    }
}

/// Reads `count` replies that are statuses, numbers or texts.
async fn skip(replies: &mut BufReader<OwnedReadHalf>, count: usize) -> Result<()> {
    let mut line = Vec::new();
    for _ in 0..count {
        line.clear();
        replies.read_until(b'\n', &mut line).await?;
        match line.split_first() {
            Some((b'+' | b':', _)) => {}
            Some((b'$', length)) => {
                let length: usize = std::str::from_utf8(length)?.trim().parse()?;
                line.resize(length + 2, 0);
                replies.read_exact(&mut line).await?;
            }
            _ => bail!("Redis answers {}", String::from_utf8_lossy(&line)),
        }
    }
    Ok(())
}
