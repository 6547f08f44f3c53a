//! What readers of a thread get, and what they are told of what they cannot get.

use std::ops::RangeInclusive;

use super::*;

/// A server, somebody who sends the events of its thread, and somebody who reads them.
struct Watched {
    redis: Redis,
    sender: Sender,
    emitter: Emitter,
    reader: Reader,
}

impl Watched {
    async fn start() -> Self {
        let redis = Redis::start().await.expect("the server starts");
        let sender = Sender::start(&redis);
        Self { emitter: sender.emitter(1), reader: connected(&redis).await, sender, redis }
    }
}

async fn connected(redis: &Redis) -> Reader {
    Reader::connect(Config::new(redis.url().into())).await.expect("the server answers")
}

/// Reads the events with these numbers, and no other.
async fn read_all(
    events: &mut (impl Stream<Item = Result<Followed, Error>> + Unpin),
    numbers: RangeInclusive<u64>,
) {
    for seq in numbers {
        assert_eq!(read(events).await.id.seq, seq, "nothing is missing");
    }
}

#[tokio::test]
async fn a_late_reader_gets_the_stream_and_then_the_channel_without_a_gap() {
    let Watched { redis: _redis, sender, emitter, reader } = Watched::start().await;
    for _ in 0..600 {
        emit_token(&emitter, "early");
    }
    sender.flush().await;
    let mut events = Box::pin(reader.follow(&thread(), None));
    let mut resumed = Box::pin(reader.follow(&thread(), Some(EntryId { epoch: Epoch(1), seq: 598 })));
    assert_eq!(read(&mut events).await.id.seq, 1);
    for _ in 0..600 {
        emit_token(&emitter, "late");
    }
    emit(&sender.emitter(2), EventType::End);
    for seq in 2..=1200 {
        let event = read(&mut events).await;
        assert_eq!((event.id.seq, event.event_type.as_str()), (seq, "on_llm_stream"));
    }
    assert_eq!(read(&mut events).await.event_type, "end");
    read_all(&mut resumed, 599..=1200).await;
}

#[tokio::test]
async fn a_reader_hears_the_text_so_far_over_the_channel() {
    let Watched { redis: _redis, sender: _sender, emitter, reader } = Watched::start().await;
    let mut events = Box::pin(reader.follow(&thread(), None));
    emit(&emitter, EventType::AttemptStart);
    assert_eq!(read(&mut events).await.id.seq, 1);
    emit_token(&emitter, "a");
    let event = read(&mut events).await;
    assert!(event.json.contains("\"cumulative_text\":\"a\""), "{}", event.json);
}

#[tokio::test]
async fn a_reader_fills_the_gap_after_the_server_was_away() {
    let Watched { redis, sender, emitter, reader } = Watched::start().await;
    let mut events = Box::pin(reader.follow(&thread(), None));
    emit(&emitter, EventType::AttemptStart);
    assert_eq!(read(&mut events).await.id.seq, 1);
    redis.kill().unwrap();
    for _ in 0..50 {
        emit(&emitter, EventType::Custom);
    }
    redis.start_again().await.unwrap();
    sender.flush().await;
    emit(&emitter, EventType::End);
    read_all(&mut events, 2..=52).await;
    emit_token(&emitter, "a");
    let event = read(&mut events).await;
    assert!(event.json.contains("cumulative_text"), "the channel is heard again: {}", event.json);
}

#[tokio::test]
async fn a_reader_finds_in_the_stream_what_the_channel_lost() {
    let Watched { redis, sender: _sender, emitter, reader } = Watched::start().await;
    let mut events = Box::pin(reader.follow(&thread(), None));
    emit(&emitter, EventType::AttemptStart);
    assert_eq!(read(&mut events).await.id.seq, 1);
    let mut raw = Raw::connect(&redis).await;
    let key = "langgraph:stream:t 1";
    for seq in 2..=3 {
        let event = json!({"event_type": "on_custom", "id": format!("1-{seq}")}).to_string();
        raw.call(&["XADD", key, &format!("1-{seq}"), "event", &event]).await;
        if seq == 3 {
            raw.call(&["PUBLISH", key, &event]).await;
        }
    }
    read_all(&mut events, 2..=3).await;
}

#[tokio::test]
async fn a_reader_without_a_server_says_so() {
    let redis = Redis::start().await.unwrap();
    redis.stop().await.unwrap();
    let error = Reader::connect(Config::new(redis.url().into())).await.err().expect("nobody is there");
    assert_eq!(error.code(), "STREAM_UNAVAILABLE");
}

#[tokio::test]
async fn a_reader_is_told_of_a_hole_between_the_events_around_it() {
    let redis = Redis::start().await.unwrap();
    let sender = Sender::start_with(Config { max_events: 10, ..Config::new(redis.url().into()) });
    let emitter = sender.emitter(1);
    let reader = connected(&redis).await;
    let mut live = Box::pin(reader.follow(&thread(), None));
    emit(&emitter, EventType::AttemptStart);
    sender.flush().await;
    assert_eq!(read(&mut live).await.id.seq, 1);
    redis.pause().unwrap();
    for _ in 0..500 {
        emit_token(&emitter, "x");
    }
    emit(&emitter, EventType::End);
    redis.resume().unwrap();
    sender.flush().await;
    emit(&sender.emitter(2), EventType::AttemptStart);

    let mut late = Box::pin(reader.follow(&thread(), None));
    assert_eq!(read(&mut late).await.id.seq, 1);
    for events in [&mut live, &mut late] {
        let (mut seq, mut told) = (1, 0);
        loop {
            match followed(events).await {
                Followed::Notice(Notice::Hole { epoch, from, to }) => {
                    assert_eq!((epoch, from), (Epoch(1), seq + 1), "the hole begins where the events end");
                    told += to + 1 - from;
                    seq = to;
                }
                Followed::Notice(notice) => panic!("{notice}"),
                Followed::Event(event) if event.id.epoch == Epoch(2) => break,
                Followed::Event(event) => {
                    assert_eq!(event.id.seq, seq + 1, "no event is missing without a word");
                    seq = event.id.seq;
                }
            }
        }
        assert_eq!(seq, 502);
        assert!(told > 400, "{told}");
    }
}

#[tokio::test]
async fn a_reader_is_told_that_old_events_were_trimmed_or_expired() {
    let Watched { redis, sender, reader, .. } = Watched::start().await;
    let emitter = sender.emitter(3);
    for _ in 0..20 {
        emit(&emitter, EventType::Custom);
    }
    sender.flush().await;
    let mut raw = Raw::connect(&redis).await;
    let key = "langgraph:stream:t 1";
    raw.call(&["XTRIM", key, "MAXLEN", "5"]).await;
    let mut from_start = Box::pin(reader.follow(&thread(), None));
    let mut resumed = Box::pin(reader.follow(&thread(), Some("3-7".parse().unwrap())));
    let mut beside = Box::pin(reader.follow(&thread(), Some("3-15".parse().unwrap())));
    assert_eq!(noticed(&mut from_start).await, "the stream begins with 3-16; what came before is gone");
    assert_eq!(
        noticed(&mut resumed).await,
        "the stream begins with 3-16; what came between 3-7 and it is gone"
    );
    for events in [&mut from_start, &mut resumed, &mut beside] {
        read_all(events, 16..=20).await;
    }
    raw.call(&["PEXPIRE", key, "1"]).await;
    let gone = "the stream is gone; what came after 3-20 may be missing";
    assert_eq!(noticed(&mut resumed).await, gone);
    let mut later = Box::pin(reader.follow(&thread(), Some("3-20".parse().unwrap())));
    assert_eq!(noticed(&mut later).await, gone);
    emit(&emitter, EventType::Custom);
    for events in [&mut resumed, &mut later] {
        assert_eq!(read(events).await.id.seq, 21, "and that it is gone is said once");
    }
}

#[tokio::test]
async fn a_reader_is_told_of_a_restart_that_lost_the_stream() {
    let Watched { redis, sender: _sender, emitter, reader } = Watched::start().await;
    let mut events = Box::pin(reader.follow(&thread(), None));
    for _ in 0..3 {
        emit(&emitter, EventType::Custom);
    }
    read_all(&mut events, 1..=3).await;
    // As a server without a disk: what it had is gone with it.
    Raw::connect(&redis).await.call(&["FLUSHALL"]).await;
    redis.kill().unwrap();
    redis.start_again().await.unwrap();
    assert_eq!(noticed(&mut events).await, "the stream is gone; what came after 1-3 may be missing");
    emit(&emitter, EventType::Custom);
    assert_eq!(read(&mut events).await.id.seq, 4);
    assert_eq!(read(&mut Box::pin(reader.follow(&thread(), Some("1-3".parse().unwrap())))).await.id.seq, 4);
    let mut late = Box::pin(reader.follow(&thread(), None));
    assert_eq!(noticed(&mut late).await, "the stream begins with 1-4; what came before is gone");
}
