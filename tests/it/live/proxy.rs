//! The proxy that stands for a network that breaks: each of its moods, as a client meets it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

use crate::proxy::{Mode, Proxy};

/// For what happens at once on a quiet machine.
const SOON: Duration = Duration::from_secs(30);
/// How long nothing must come to count as nothing.
const SILENCE: Duration = Duration::from_millis(300);

/// A server that says everything back, behind a proxy.
async fn echo() -> Result<Proxy> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = listener.local_addr()?.port();
    let tasks = TaskTracker::new();
    tasks.clone().spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tasks.spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    Proxy::start(port).await
}

async fn client(proxy: &Proxy) -> Result<TcpStream> {
    Ok(TcpStream::connect(("127.0.0.1", proxy.port())).await?)
}

/// What comes back for `text`; empty when the connection is over.
async fn said(stream: &mut TcpStream, text: &str) -> Result<String> {
    let mut answer = vec![0; text.len()];
    let exchange = async {
        stream.write_all(text.as_bytes()).await?;
        stream.read_exact(&mut answer).await
    };
    match tokio::time::timeout(SOON, exchange).await.context("no answer")? {
        Ok(_) => Ok(String::from_utf8(answer)?),
        Err(_) => Ok(String::new()),
    }
}

#[tokio::test]
async fn it_passes_and_delays_each_way() -> Result<()> {
    let proxy = echo().await?;
    let mut stream = client(&proxy).await?;
    assert_eq!(said(&mut stream, "one").await?, "one");
    let (up, down) = (Duration::from_millis(150), Duration::from_millis(250));
    proxy.set(Mode::Delay { up, down });
    let started = Instant::now();
    assert_eq!(said(&mut stream, "two").await?, "two");
    assert!(started.elapsed() >= up + down);
    proxy.set(Mode::Pass);
    assert_eq!(said(&mut stream, "three").await?, "three", "the connection lived on");
    Ok(())
}

#[tokio::test]
async fn a_cut_ends_connections_and_refuses_new_ones_until_it_is_over() -> Result<()> {
    let proxy = echo().await?;
    let mut stream = client(&proxy).await?;
    assert_eq!(said(&mut stream, "one").await?, "one");
    proxy.set(Mode::Cut);
    assert_eq!(tokio::time::timeout(SOON, stream.read(&mut [0])).await?.unwrap_or(0), 0);
    // A reset may reach the client while it still connects.
    let refused = match client(&proxy).await {
        Ok(mut stream) => said(&mut stream, "two").await?,
        Err(_) => String::new(),
    };
    assert_eq!(refused, "");
    proxy.set(Mode::Pass);
    assert_eq!(said(&mut client(&proxy).await?, "three").await?, "three");
    Ok(())
}

#[tokio::test]
async fn a_black_hole_swallows_and_what_lost_bytes_is_cut_when_it_closes() -> Result<()> {
    let proxy = echo().await?;
    let (mut lost, mut idle) = (client(&proxy).await?, client(&proxy).await?);
    assert_eq!(said(&mut lost, "one").await?, "one");
    assert_eq!(said(&mut idle, "one").await?, "one");
    proxy.set(Mode::BlackHole);
    lost.write_all(b"two").await?;
    let mut late = client(&proxy).await?;
    late.write_all(b"two").await?;
    for stream in [&mut lost, &mut late] {
        assert!(
            tokio::time::timeout(SILENCE, stream.read(&mut [0])).await.is_err(),
            "nothing comes, not even an end"
        );
    }
    proxy.set(Mode::Pass);
    for stream in [&mut lost, &mut late] {
        assert_eq!(tokio::time::timeout(SOON, stream.read(&mut [0])).await?.unwrap_or(0), 0);
    }
    assert_eq!(said(&mut idle, "three").await?, "three", "a connection that lost nothing lives on");
    Ok(())
}
