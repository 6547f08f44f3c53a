//! Run events over a real server: what arrives, what is refused, and what an outage costs.

mod readers;

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use agent_executor::{
    ids::{Epoch, JobId, Namespace, SystemClock, ThreadId},
    stream::{
        Claimed, Emitter, EntryId, EventType, Origin, Piece, Sink, TokenConfig,
        dragonfly::{Config, Dragonfly, Error, Followed, Notice, ReadEvent, Reader},
    },
};
use futures::{Stream, StreamExt as _};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::servers::{Redis, until};

/// Longest wait for what must happen; a hundred times what a quiet machine needs.
const LIMIT: Duration = Duration::from_secs(30);

/// A connection that speaks just enough of the protocol to see what the server has, without the code under test.
struct Raw(BufReader<TcpStream>);

impl Raw {
    async fn connect(redis: &Redis) -> Self {
        Self(BufReader::new(
            TcpStream::connect(("127.0.0.1", redis.port())).await.expect("the server listens"),
        ))
    }

    async fn send(&mut self, command: &[&str]) {
        let mut request = format!("*{}\r\n", command.len());
        for part in command {
            request.push_str(&format!("${}\r\n{part}\r\n", part.len()));
        }
        self.0.write_all(request.as_bytes()).await.expect("the server reads");
    }

    async fn call(&mut self, command: &[&str]) -> Json {
        self.send(command).await;
        self.reply().await
    }

    async fn reply(&mut self) -> Json {
        tokio::time::timeout(LIMIT, self.value()).await.expect("the server answers")
    }

    async fn value(&mut self) -> Json {
        let mut line = String::new();
        self.0.read_line(&mut line).await.expect("the server writes");
        let (kind, rest) = line.trim_end().split_at(1);
        match kind {
            "$" | "*" if rest == "-1" => Json::Null,
            "$" => {
                let mut text = vec![0; rest.parse::<usize>().expect("a length") + 2];
                self.0.read_exact(&mut text).await.expect("the server writes");
                text.truncate(text.len() - 2);
                String::from_utf8(text).expect("UTF-8").into()
            }
            "*" => {
                let mut items = Vec::new();
                for _ in 0..rest.parse::<usize>().expect("a length") {
                    items.push(Box::pin(self.value()).await);
                }
                items.into()
            }
            ":" => rest.parse::<i64>().expect("a number").into(),
            _ => rest.into(),
        }
    }

    /// The entries of a thread: id and event.
    async fn entries(&mut self, thread: &ThreadId) -> Vec<(String, Json)> {
        let entries = self.call(&["XRANGE", &format!("langgraph:stream:{thread}"), "-", "+"]).await;
        let entry = |entry: &Json| {
            assert_eq!(entry[1][0], "event");
            (text(&entry[0]), serde_json::from_str(&text(&entry[1][1])).expect("valid JSON"))
        };
        entries.as_array().expect("a list of entries").iter().map(entry).collect()
    }

    async fn subscribed(redis: &Redis, thread: &ThreadId) -> Self {
        let mut raw = Self::connect(redis).await;
        raw.call(&["SUBSCRIBE", &format!("langgraph:stream:{thread}")]).await;
        raw
    }

    /// The next event on the subscribed channel.
    async fn heard(&mut self) -> Json {
        serde_json::from_str(self.reply().await[2].as_str().expect("a message")).expect("valid JSON")
    }
}

fn text(json: &Json) -> String {
    json.as_str().expect("a text").to_owned()
}

fn thread() -> ThreadId {
    ThreadId::parse("t 1").expect("valid")
}

/// A sending side, and what it counted.
struct Sender {
    sink: Arc<Dragonfly>,
    cancel: CancellationToken,
    tracker: TaskTracker,
}

impl Sender {
    fn start(redis: &Redis) -> Self {
        Self::start_with(Config::new(redis.url().into()))
    }

    fn start_with(config: Config) -> Self {
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        let sink = Dragonfly::start(config, &tracker, cancel.clone()).expect("the address is valid");
        Self { sink, cancel, tracker }
    }

    fn emitter(&self, epoch: i64) -> Emitter {
        self.emitter_of(thread(), epoch)
    }

    fn emitter_of(&self, thread_id: ThreadId, epoch: i64) -> Emitter {
        let claimed =
            Claimed { thread_id, job_id: JobId::parse("j").expect("valid"), epoch: Epoch(epoch), attempt: 1 };
        Emitter::new(self.sink.clone(), Arc::new(SystemClock), claimed, TokenConfig::default())
    }

    async fn flush(&self) {
        let started = std::time::Instant::now();
        self.sink.flush(LIMIT).await;
        assert!(started.elapsed() < LIMIT, "events were sent in time");
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.tracker.close();
        tokio::time::timeout(LIMIT, self.tracker.wait()).await.expect("the sending task ends");
    }
}

fn emit(emitter: &Emitter, event_type: EventType) {
    let origin = Origin { node: "main", ns: &Namespace::root() };
    emitter.emit(event_type, origin, json!({"of": event_type.as_str()}));
}

fn emit_token(emitter: &Emitter, token: &str) {
    let origin = Origin { node: "main", ns: &Namespace::root() };
    let piece = Piece { token, offset: 0, cumulative_text: Some(token), last: false };
    emitter.token(origin, "m", &piece);
}

/// Counts what this thread's tasks count, from now on.
fn counters() -> (PrometheusHandle, impl Drop) {
    let recorder = Box::leak(Box::new(PrometheusBuilder::new().build_recorder()));
    (recorder.handle(), metrics::set_default_local_recorder(recorder))
}

fn count(counters: &PrometheusHandle, line: &str) -> u64 {
    let rendered = counters.render();
    let value = rendered.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().expect("a count"))
}

async fn followed(events: &mut (impl Stream<Item = Result<Followed, Error>> + Unpin)) -> Followed {
    let next = tokio::time::timeout(LIMIT, events.next()).await.expect("an event arrives");
    next.expect("the stream goes on").expect("the server is there")
}

async fn read(events: &mut (impl Stream<Item = Result<Followed, Error>> + Unpin)) -> ReadEvent {
    match followed(events).await {
        Followed::Event(event) => event,
        Followed::Notice(notice) => panic!("instead of an event: {notice}"),
    }
}

async fn noticed(events: &mut (impl Stream<Item = Result<Followed, Error>> + Unpin)) -> String {
    match followed(events).await {
        Followed::Event(event) => panic!("instead of a notice: {event:?}"),
        Followed::Notice(notice) => notice.to_string(),
    }
}

#[tokio::test]
async fn channel_and_stream_carry_the_same_events_in_order() {
    let redis = Redis::start().await.unwrap();
    let (counters, _counting) = counters();
    let sender = Sender::start(&redis);
    let mut channel = Raw::subscribed(&redis, &thread()).await;
    let emitter = sender.emitter(7);
    emit(&emitter, EventType::AttemptStart);
    for n in 0..500 {
        emit_token(&emitter, &format!("token {n} \\\"é\\\""));
    }
    emit(&emitter, EventType::End);
    sender.flush().await;

    let mut raw = Raw::connect(&redis).await;
    let entries = raw.entries(&thread()).await;
    let ids: Vec<&str> = entries.iter().map(|(id, _)| id.as_str()).collect();
    let expected: Vec<String> = (1..=502).map(|seq| format!("7-{seq}")).collect();
    assert_eq!(ids, expected);
    for (id, entry) in &entries {
        let mut heard = channel.heard().await;
        assert_eq!(heard["id"], *id);
        if heard["event_type"] == "on_llm_stream" {
            let so_far = heard["data"].as_object_mut().unwrap().shift_remove("cumulative_text");
            assert_eq!(so_far, Some(entry["data"]["token"].clone()), "the channel has the text so far");
        }
        assert_eq!(heard, *entry);
    }
    assert_eq!(entries[1].1["data"]["token"], "token 0 \"é\"");
    let ttl = raw.call(&["TTL", "langgraph:stream:t 1"]).await;
    assert!((3500..=3600).contains(&ttl.as_i64().unwrap()), "{ttl}");
    assert_eq!(count(&counters, "agent_executor_redis_publish_total{event_type=\"on_llm_stream\"}"), 500);
    assert_eq!(count(&counters, "agent_executor_redis_publish_total{event_type=\"end\"}"), 1);
    assert_eq!(count(&counters, "agent_executor_redis_publish_errors_total"), 0, "{}", counters.render());
    sender.stop().await;
}

#[tokio::test]
async fn a_zombies_events_and_repeats_are_refused_and_not_published() {
    let redis = Redis::start().await.unwrap();
    let (counters, _counting) = counters();
    let sender = Sender::start(&redis);
    let mut channel = Raw::subscribed(&redis, &thread()).await;
    let (zombie, owner) = (sender.emitter(3), sender.emitter(4));
    emit(&zombie, EventType::AttemptStart);
    sender.flush().await;
    emit(&owner, EventType::AttemptStart);
    emit(&zombie, EventType::ToolStart);
    emit(&zombie, EventType::End);
    sender.flush().await;
    emit(&sender.emitter(4), EventType::AttemptStart); // 4-1 again
    emit(&owner, EventType::End);
    sender.flush().await;

    let expected = ["3-1", "4-1", "4-2"];
    let entries = Raw::connect(&redis).await.entries(&thread()).await;
    assert_eq!(entries.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), expected);
    for id in expected {
        assert_eq!(channel.heard().await["id"], id);
    }
    assert_eq!(count(&counters, "agent_executor_redis_publish_total{event_type=\"end\"}"), 1);
    assert_eq!(count(&counters, "agent_executor_redis_publish_total{event_type=\"on_tool_start\"}"), 0);
    let dropped =
        |kind| count(&counters, &format!("agent_executor_stream_dropped_total{{event_type=\"{kind}\"}}"));
    assert_eq!((dropped("on_tool_start"), dropped("end")), (1, 1), "nobody will see what the zombie says");
    assert_eq!(dropped("on_attempt_start"), 0, "a repeat was seen");
}

/// A place for the log of this thread's tasks.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("unbroken").extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Keeps what is logged from now on.
    fn keep(&self) -> impl Drop {
        let log = self.clone();
        tracing::subscriber::set_default(
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone()).finish(),
        )
    }

    fn lines_with(&self, word: &str) -> usize {
        let log = String::from_utf8(self.0.lock().expect("unbroken").clone()).expect("UTF-8");
        log.lines().filter(|line| line.contains(word)).count()
    }
}

#[tokio::test]
async fn a_stream_that_is_ahead_of_its_thread_is_told_of_and_lives_no_longer_for_what_it_refuses() {
    let redis = Redis::start().await.unwrap();
    let (counters, _counting) = counters();
    let log = Log::default();
    let _keeping = log.keep();
    let mut raw = Raw::connect(&redis).await;
    // As a database leaves it that is gone: another one counts its claims from 1.
    raw.call(&["XADD", "langgraph:stream:t 1", "900-3", "event", "{}"]).await;
    raw.call(&["EXPIRE", "langgraph:stream:t 1", "1000"]).await;
    let sender = Sender::start(&redis);
    let emitter = sender.emitter(2);
    for _ in 0..3 {
        emit(&emitter, EventType::Custom);
        sender.flush().await;
    }
    let dropped =
        |kind| count(&counters, &format!("agent_executor_stream_dropped_total{{event_type=\"{kind}\"}}"));
    assert_eq!(dropped("on_custom"), 3);
    assert_eq!(log.lines_with("STREAM_AHEAD"), 1, "one word about all of them");
    let ttl = raw.call(&["TTL", "langgraph:stream:t 1"]).await;
    assert!((1..=1000).contains(&ttl.as_i64().unwrap()), "{ttl}");

    raw.call(&["DEL", "langgraph:stream:t 1"]).await;
    emit(&emitter, EventType::End);
    sender.flush().await;
    assert_eq!(raw.entries(&thread()).await[0].1["event_type"], "end");
    assert_eq!(dropped("end"), 0);
    let ttl = raw.call(&["TTL", "langgraph:stream:t 1"]).await;
    assert!((3500..=3600).contains(&ttl.as_i64().unwrap()), "{ttl}");
}

#[tokio::test]
async fn events_reach_a_server_that_comes_later_than_the_first_of_them() {
    let redis = Redis::start().await.unwrap();
    redis.stop().await.unwrap();
    let (counters, _counting) = counters();
    let sender = Sender::start(&redis);
    let emitter = sender.emitter(1);
    emit(&emitter, EventType::AttemptStart);
    for _ in 0..10 {
        emit_token(&emitter, "x");
    }
    emit(&emitter, EventType::End);
    assert!(!sender.sink.ping().await);
    let errors = || async { count(&counters, "agent_executor_redis_publish_errors_total") > 1 };
    until("the sender tries", LIMIT, errors).await.unwrap();
    sender.sink.flush(Duration::from_millis(10)).await; // must come back
    redis.start_again().await.unwrap();
    sender.flush().await;
    assert!(sender.sink.ping().await);
    let entries = Raw::connect(&redis).await.entries(&thread()).await;
    assert_eq!(entries.len(), 12);
    assert_eq!(entries[11].1["event_type"], "end");
}

#[tokio::test]
async fn a_server_killed_in_the_middle_costs_no_lifecycle_event() {
    let redis = Redis::start().await.unwrap();
    let sender = Sender::start(&redis);
    let emitter = sender.emitter(1);
    let kinds = [EventType::ToolStart, EventType::ToolEnd, EventType::StateUpdate];
    let mut emitted = 0;
    for round in 0..3 {
        for turn in 0..200 {
            emit(&emitter, kinds[turn % 3]);
            emitted += 1;
            if turn == 100 {
                redis.kill().unwrap();
            }
            tokio::task::yield_now().await;
        }
        redis.start_again().await.unwrap();
        if round == 1 {
            sender.flush().await;
        }
    }
    emit(&emitter, EventType::End);
    sender.flush().await;
    let entries = Raw::connect(&redis).await.entries(&thread()).await;
    let seqs: Vec<u64> = entries.iter().map(|(_, event)| event["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=emitted + 1).collect::<Vec<u64>>());
    assert_eq!(entries.last().unwrap().1["event_type"], "end");
}

#[tokio::test]
async fn a_frozen_server_blocks_nobody_and_costs_only_the_oldest_tokens() {
    let redis = Redis::start().await.unwrap();
    let (counters, _counting) = counters();
    let config = Config { max_events: 100, ..Config::new(redis.url().into()) };
    let sender = Sender::start_with(config);
    let emitter = sender.emitter(1);
    emit(&emitter, EventType::AttemptStart);
    sender.flush().await;
    redis.pause().unwrap();
    let started = std::time::Instant::now();
    for n in 0..5000 {
        if n % 100 == 0 {
            emit(&emitter, EventType::ToolStart);
        }
        emit_token(&emitter, "x");
    }
    emit(&emitter, EventType::End);
    assert!(started.elapsed() < Duration::from_secs(2), "emitting does not wait: {:?}", started.elapsed());
    let failed = || async { count(&counters, "agent_executor_redis_publish_errors_total") > 0 };
    until("a flush fails", LIMIT, failed).await.unwrap();
    redis.resume().unwrap();
    sender.flush().await;

    let entries = Raw::connect(&redis).await.entries(&thread()).await;
    let of = |kind: &str| entries.iter().filter(|(_, event)| event["event_type"] == kind).count();
    assert_eq!((of("on_attempt_start"), of("on_tool_start"), of("end")), (1, 50, 1));
    let dropped = count(&counters, "agent_executor_stream_dropped_total{event_type=\"on_llm_stream\"}");
    assert!(dropped > 4000, "{dropped}");
    assert!(of("on_llm_stream") as u64 >= 5000 - dropped, "no token is lost without being counted");
    assert!(
        !counters.render().contains("stream_dropped_total{event_type=\"on_tool"),
        "only tokens are dropped"
    );
    assert_eq!(entries.last().unwrap().1["event_type"], "end");
    assert_eq!(entries.last().unwrap().1["seq"], 5052, "dropped events have used up their numbers");
}

#[tokio::test]
async fn a_thread_whose_key_is_taken_does_not_hold_up_the_others() {
    let redis = Redis::start().await.unwrap();
    let (counters, _counting) = counters();
    Raw::connect(&redis).await.call(&["SET", "langgraph:stream:taken", "by somebody"]).await;
    let sender = Sender::start(&redis);
    let taken = sender.emitter_of(ThreadId::parse("taken").unwrap(), 1);
    let good = sender.emitter(1);
    for _ in 0..3 {
        emit(&taken, EventType::Custom);
        emit(&good, EventType::Custom);
    }
    sender.flush().await;
    assert_eq!(Raw::connect(&redis).await.entries(&thread()).await.len(), 3);
    assert_eq!(count(&counters, "agent_executor_stream_dropped_total{event_type=\"on_custom\"}"), 3);
}

#[tokio::test]
async fn a_server_that_forgets_the_script_gets_it_again_and_full_memory_is_waited_out() {
    let redis = Redis::start().await.unwrap();
    let (counters, _counting) = counters();
    let sender = Sender::start(&redis);
    let emitter = sender.emitter(1);
    let mut raw = Raw::connect(&redis).await;
    emit(&emitter, EventType::AttemptStart);
    sender.flush().await;
    raw.call(&["SCRIPT", "FLUSH"]).await;
    emit(&emitter, EventType::Custom);
    sender.flush().await;
    assert_eq!(count(&counters, "agent_executor_redis_publish_errors_total"), 0, "it is no error to forget");

    raw.call(&["CONFIG", "SET", "maxmemory", "1"]).await;
    emit(&emitter, EventType::Custom);
    let failed = || async { count(&counters, "agent_executor_redis_publish_errors_total") > 6 };
    until("more flushes fail than a broken connection may cost", LIMIT, failed).await.unwrap();
    raw.call(&["CONFIG", "SET", "maxmemory", "0"]).await;
    sender.flush().await;
    assert_eq!(raw.entries(&thread()).await.len(), 3);
}

#[tokio::test]
async fn the_largest_event_arrives_and_old_entries_make_room() {
    let redis = Redis::start().await.unwrap();
    let sender = Sender::start_with(Config { max_len: 100, ..Config::new(redis.url().into()) });
    let emitter = sender.emitter(1);
    for _ in 0..1000 {
        emit_token(&emitter, "x");
    }
    let large = "x".repeat(4 * 1024 * 1024 - 1000);
    let origin = Origin { node: "", ns: &Namespace::root() };
    emitter.emit(EventType::End, origin, json!({"final_result": large}));
    sender.flush().await;
    let entries = Raw::connect(&redis).await.entries(&thread()).await;
    assert!((100..400).contains(&entries.len()), "{}", entries.len());
    assert_eq!(entries.last().unwrap().1["data"]["final_result"], large);
}

#[tokio::test]
async fn a_password_is_used_and_a_missing_one_is_no_reason_to_end() {
    let redis = Redis::start().await.unwrap();
    let password = "p@ss/w:rd".into();
    Raw::connect(&redis).await.call(&["CONFIG", "SET", "requirepass", "p@ss/w:rd"]).await;
    let sender = Sender::start(&redis);
    emit(&sender.emitter(1), EventType::AttemptStart);
    assert!(!sender.sink.ping().await);
    let url = Config::url_from_parts("127.0.0.1", redis.port(), Some(&password)).unwrap();
    let knowing = Sender::start_with(Config::new(url));
    emit(&knowing.emitter(2), EventType::AttemptStart);
    knowing.flush().await;
    let mut raw = Raw::connect(&redis).await;
    raw.call(&["AUTH", "p@ss/w:rd"]).await;
    assert_eq!(raw.entries(&thread()).await.len(), 1);
    raw.call(&["CONFIG", "SET", "requirepass", ""]).await;
    sender.flush().await;
    assert!(sender.sink.ping().await);
}

#[tokio::test]
async fn a_subscriber_that_never_reads_holds_up_nobody() {
    let redis = Redis::start().await.unwrap();
    let (counters, _counting) = counters();
    let mut raw = Raw::connect(&redis).await;
    raw.call(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 1mb 1"]).await;
    // It has subscribed and reads no more: the server has to cut it off.
    let _deaf = Raw::subscribed(&redis, &thread()).await;
    let sender = Sender::start(&redis);
    let emitter = sender.emitter(1);
    let origin = Origin { node: "", ns: &Namespace::root() };
    for n in 0..200 {
        emitter.emit(EventType::Custom, origin, json!({"n": n, "text": "x".repeat(100_000)}));
        if n % 50 == 0 {
            sender.flush().await;
        }
    }
    emit(&emitter, EventType::End);
    sender.flush().await;
    assert_eq!(raw.entries(&thread()).await.len(), 201, "20 MB have arrived");
    let subscribers = raw.call(&["PUBSUB", "NUMSUB", "langgraph:stream:t 1"]).await;
    assert_eq!(subscribers[1], 0, "the server has cut it off");
    assert_eq!(count(&counters, "agent_executor_in_use{kind=\"stream_bytes\"}"), 0);
    assert!(!counters.render().contains("agent_executor_stream_dropped_total{"), "nothing was dropped");
}

#[tokio::test]
async fn many_threads_and_a_server_that_hangs_take_no_more_memory_than_their_bounds() {
    let redis = Redis::start().await.unwrap();
    let (counters, _counting) = counters();
    let sender = Sender::start_with(Config { max_bytes: 256 * 1024, ..Config::new(redis.url().into()) });
    let emitters: Vec<_> =
        (0..100).map(|n| sender.emitter_of(ThreadId::parse(&format!("thread {n}")).unwrap(), 1)).collect();
    redis.pause().unwrap();
    let token = "x".repeat(1000);
    for round in 0..100 {
        emitters.iter().for_each(|emitter| emit_token(emitter, &token));
        if round % 10 == 0 {
            emitters.iter().for_each(|emitter| emit(emitter, EventType::ToolStart));
            tokio::task::yield_now().await;
        }
        let bytes = count(&counters, "agent_executor_in_use{kind=\"stream_bytes\"}");
        // 1,000 lifecycle events beside the tokens, each below 1 KiB with all it costs.
        assert!(bytes < 256 * 1024 + 1024 * 1024, "{bytes}");
    }
    emitters.iter().for_each(|emitter| emit(emitter, EventType::End));
    let dropped = || count(&counters, "agent_executor_stream_dropped_total{event_type=\"on_llm_stream\"}");
    assert!(dropped() > 9_000, "10 MB of text do not fit: {}", dropped());
    assert_eq!(count(&counters, "agent_executor_limit{kind=\"stream_bytes\"}"), 64 * 1024 * 1024);
    redis.resume().unwrap();
    sender.flush().await;
    let mut raw = Raw::connect(&redis).await;
    for n in [0, 50, 99] {
        let entries = raw.entries(&ThreadId::parse(&format!("thread {n}")).unwrap()).await;
        let of = |kind: &str| entries.iter().filter(|(_, event)| event["event_type"] == kind).count();
        assert_eq!((of("on_tool_start"), of("end")), (10, 1));
        assert_eq!(entries.last().unwrap().1["seq"], 111);
    }
}
