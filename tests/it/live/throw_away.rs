//! The throw-away servers themselves: they keep what they were told across a kill, and go away with their owner.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::servers::{Nats, Postgres, Redis};

fn redis_says(redis: &Redis, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", redis.port()))?;
    stream.set_read_timeout(Some(Duration::from_millis(300)))?;
    stream.write_all(format!("{request}\r\nQUIT\r\n").as_bytes())?;
    let mut told = String::new();
    stream.read_to_string(&mut told)?;
    Ok(told)
}

#[tokio::test]
async fn a_killed_postgres_starts_again_with_every_committed_row() {
    let postgres = Postgres::start().await.unwrap();
    postgres.database("kept").await.unwrap();
    postgres.sql("kept", "create table t (n int); insert into t values (1)").await.unwrap();
    postgres.kill().unwrap();
    assert!(postgres.sql("kept", "select n from t").await.is_err(), "nobody answers a dead server's port");
    postgres.start_again().await.unwrap();
    assert_eq!(postgres.sql("kept", "select n from t").await.unwrap(), "1");
    postgres.stop_immediate().await.unwrap();
    postgres.start_again().await.unwrap();
    postgres.stop().await.unwrap();
    postgres.start_again().await.unwrap();
    assert_eq!(postgres.sql("kept", "select n from t").await.unwrap(), "1");
}

#[tokio::test]
async fn tests_share_one_postgres_but_no_database() {
    let postgres = Postgres::shared().await.unwrap();
    let (first, second) =
        (postgres.fresh_database().await.unwrap(), postgres.fresh_database().await.unwrap());
    assert_ne!(first, second);
    let error = postgres.database("not; plain").await.unwrap_err();
    assert!(error.to_string().contains("not a plain database name"), "{error}");
}

#[tokio::test]
async fn a_killed_redis_starts_again_with_its_data_and_a_paused_one_does_not_answer() {
    let redis = Redis::start().await.unwrap();
    assert!(redis_says(&redis, "SET key kept").unwrap().contains("+OK"));
    redis.pause().unwrap();
    assert!(redis_says(&redis, "GET key").is_err());
    redis.resume().unwrap();
    redis.kill().unwrap();
    redis.start_again().await.unwrap();
    assert!(redis_says(&redis, "GET key").unwrap().contains("kept"));
    redis.stop().await.unwrap();
    assert!(redis_says(&redis, "GET key").is_err());
}

#[tokio::test]
async fn a_nats_server_has_jetstream_and_the_settings_it_was_given() {
    let nats = Nats::start_with("max_payload: 4MB").await.unwrap();
    let port = nats.port();
    for _ in 0..2 {
        let mut greeting = vec![0; 4096];
        let length = TcpStream::connect(("127.0.0.1", port)).unwrap().read(&mut greeting).unwrap();
        let greeting = String::from_utf8_lossy(&greeting[..length]).into_owned();
        assert!(greeting.contains("\"jetstream\":true"), "{greeting}");
        assert!(greeting.contains("\"max_payload\":4194304"), "{greeting}");
        nats.kill().unwrap();
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
        nats.start_again().await.unwrap();
    }
    nats.stop().await.unwrap();
}
