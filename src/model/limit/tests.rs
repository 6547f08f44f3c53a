//! The desk by a clock that the tests move: time passes only while everybody waits.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt as _, future::join_all};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{Away, Desk, Draw, Drawn, Lane, Limits, Place, Pool, bucket::Bucket};
use crate::{ids::ThreadId, model::breaker};

/// Processes that the operator of a test expects.
const PARTS: u32 = 10;

/// A pool in memory, for the processes of one test.
struct Tank {
    origin: Instant,
    is_away: AtomicBool,
    state: Mutex<(Bucket, Instant, BTreeMap<String, usize>)>,
}

/// The way of one process to the tank.
struct Pipe(Arc<Tank>, &'static str);

impl Tank {
    fn new() -> Arc<Self> {
        let state = Mutex::new((Bucket::default(), Instant::now(), BTreeMap::new()));
        Arc::new(Self { origin: Instant::now(), is_away: AtomicBool::new(false), state })
    }
}

#[async_trait]
impl Pool for Pipe {
    async fn draw(&self, _: &str, draw: &Draw) -> Result<Drawn, Away> {
        let Self(tank, process) = self;
        if tank.is_away.load(Ordering::SeqCst) {
            return Err(Away("the tank is away".into()));
        }
        let mut state = tank.state.lock().expect("no test panics with it");
        let (bucket, paused, held) = &mut *state;
        let (now, millis) = (Instant::now(), tank.origin.elapsed().as_secs_f64() * 1000.0);
        *paused = (*paused).max(now + draw.pause);
        bucket.settle(millis, draw.settled, &draw.rates);
        held.insert((*process).to_owned(), draw.held);
        let mut drawn = Drawn { granted: 0, wait: Duration::ZERO, pods: 0, pause: *paused - now };
        drawn.pods = u32::try_from(held.len()).expect("few");
        for tokens in &draw.calls {
            let in_all: usize = held.values().sum();
            let wait = match bucket.take(millis, *tokens, &draw.rates) {
                _ if *paused > now => *paused - now,
                _ if draw.rates.is_full(in_all) => Duration::from_millis(100),
                Ok(()) => {
                    *held.entry((*process).to_owned()).or_default() += 1;
                    drawn.granted += 1;
                    continue;
                }
                Err(wait) => Duration::from_secs_f64(wait / 1000.0),
            };
            drawn.wait = wait;
            break;
        }
        Ok(drawn)
    }
}

fn desk(limits: Limits, places: usize) -> Arc<Desk> {
    let (breaker, parts) = (breaker::Config::default(), PARTS);
    let lane =
        |name: &str| Lane { provider: name.into(), shared_as: Some(name.into()), limits, parts, breaker };
    Arc::new(Desk::new(vec![lane("p"), lane("q")], places, CancellationToken::new()))
}

fn process(tank: &Arc<Tank>, name: &'static str, limits: Limits) -> Arc<Desk> {
    let desk = desk(limits, 512);
    desk.share(Arc::new(Pipe(tank.clone(), name)));
    desk
}

fn requests(requests_per_minute: u64) -> Limits {
    Limits { requests_per_minute: Some(requests_per_minute), ..Limits::default() }
}

fn thread(name: &str) -> ThreadId {
    ThreadId::parse(name).expect("a thread id")
}

async fn place(desk: &Arc<Desk>, name: &str) -> Place {
    desk.place(0, &thread(name), 0).await
}

/// Seconds until each of `count` calls was made, all asked for now and over at once.
async fn seconds(desk: &Arc<Desk>, count: usize) -> Vec<f64> {
    let began = Instant::now();
    let calls = (0..count).map(|_| async {
        drop(place(desk, "t").await);
        began.elapsed().as_secs_f64()
    });
    join_all(calls).await
}

fn near(seconds: f64, expected: f64) -> bool {
    (seconds - expected).abs() < 0.6
}

#[tokio::test(start_paused = true)]
async fn without_limits_calls_wait_for_nothing_but_a_place_and_threads_take_turns() {
    let desk = desk(Limits::default(), 2);
    let first = [place(&desk, "a").await, place(&desk, "a").await];
    let order = Mutex::new(Vec::new());
    let call = |name: &'static str| {
        let (desk, order) = (&desk, &order);
        async move {
            let place = place(desk, name).await;
            order.lock().expect("unbroken").push(name);
            tokio::task::yield_now().await;
            drop(place);
        }
    };
    let calls = ["a", "a", "a", "a", "b", "c"].map(call);
    let release = async {
        tokio::task::yield_now().await;
        drop(first);
    };
    tokio::join!(join_all(calls), release);
    let order = order.into_inner().expect("unbroken");
    let position = |name: &str| order.iter().position(|other| *other == name).expect("it was made");
    assert!(position("b") <= 2 && position("c") <= 3, "{order:?}");
}

#[tokio::test(start_paused = true)]
async fn a_process_alone_keeps_to_the_rate() {
    let times = seconds(&desk(requests(60), 512), 5).await;
    assert!(times.iter().zip(0..).all(|(time, at)| near(*time, f64::from(at))), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn processes_share_a_rate_and_keep_to_their_part_while_the_pool_is_away() {
    let tank = Tank::new();
    let (one, two) = (process(&tank, "one", requests(600)), process(&tank, "two", requests(600)));
    // Both are known before the first call.
    sleep(Duration::from_secs(4)).await;
    let (a, b) = tokio::join!(seconds(&one, 30), seconds(&two, 30));
    // 10 at once, then about 10 a second for both.
    let last = a.iter().chain(&b).fold(0.0_f64, |last, time| last.max(*time));
    assert!(near(last, 5.0), "{last}");

    sleep(Duration::from_secs(60)).await;
    tank.is_away.store(true, Ordering::SeqCst);
    let times = seconds(&one, 30).await;
    let last = times.iter().fold(0.0_f64, |last, time| last.max(*time));
    assert!(near(last, 5.0), "5 at once, then 5 a second: {last}");

    tank.is_away.store(false, Ordering::SeqCst);
    sleep(Duration::from_secs(60)).await;
    let times = seconds(&one, 30).await;
    let last = times.iter().fold(0.0_f64, |last, time| last.max(*time));
    assert!(near(last, 2.0), "10 at once, then 10 a second: {last}");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_starts_while_the_pool_is_away_takes_the_part_the_operator_expects() {
    let tank = Tank::new();
    tank.is_away.store(true, Ordering::SeqCst);
    let new = process(&tank, "new", requests(600));
    let last = |times: Vec<f64>| times.into_iter().fold(0.0_f64, f64::max);
    let alone = last(seconds(&new, 10).await);
    assert!(near(alone, 9.0), "one at once, then one a second: {alone}");

    tank.is_away.store(false, Ordering::SeqCst);
    sleep(Duration::from_secs(60)).await;
    drop(place(&new, "t").await);
    tank.is_away.store(true, Ordering::SeqCst);
    sleep(Duration::from_secs(60)).await;
    let known = last(seconds(&new, 30).await);
    assert!(near(known, 2.0), "the pool saw nobody else: {known}");
}

#[tokio::test(start_paused = true)]
async fn calls_at_once_are_counted_over_all_processes() {
    let tank = Tank::new();
    let limits = Limits { concurrent: Some(3), ..Limits::default() };
    let (one, two) = (process(&tank, "one", limits), process(&tank, "two", limits));
    let held = [place(&one, "a").await, place(&one, "b").await, place(&two, "c").await];
    let mut waiting = Box::pin(place(&two, "d"));
    assert!(tokio::time::timeout(Duration::from_secs(30), &mut waiting).await.is_err());
    drop(held);
    let began = Instant::now();
    drop(waiting.await);
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_one_process_is_asked_for_holds_all_of_them() {
    for limits in [Limits::default(), requests(6000)] {
        let tank = Tank::new();
        let (one, two) = (process(&tank, "one", limits), process(&tank, "two", limits));
        drop((place(&one, "a").await, place(&two, "a").await));
        one.pause(0, Duration::from_secs(20));
        // The other one hears of it with its next sign of life.
        sleep(Duration::from_secs(4)).await;
        let (a, b) = tokio::join!(seconds(&one, 1), seconds(&two, 1));
        assert!(near(a[0], 16.0) && near(b[0], 16.0), "{a:?} {b:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_are_settled_when_they_are_known() {
    let limits = Limits { tokens_per_minute: Some(60_000), ..Limits::default() };
    for desk in [desk(limits, 512), process(&Tank::new(), "one", limits)] {
        drop(desk.place(0, &thread("t"), 30_000).await);
        desk.settle(0, 10_000);
        let began = Instant::now();
        drop(desk.place(0, &thread("t"), 20_000).await);
        let waited = began.elapsed().as_secs_f64();
        assert!(near(waited, 30.0), "40 seconds are owed, 10 may be: {waited}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_stops_waiting_takes_nothing_with_him() {
    let desk = desk(Limits::default(), 1);
    let first = place(&desk, "a").await;
    let mut gone = Box::pin(place(&desk, "b"));
    let mut told = Box::pin(place(&desk, "c"));
    assert!((&mut gone).now_or_never().is_none() && (&mut told).now_or_never().is_none());
    drop(gone);
    drop(first);
    // The clerk gives the place to somebody who does not look before he goes.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    drop(told);
    drop(place(&desk, "d").await);
    drop(desk.place(1, &thread("d"), 0).await);
}

#[tokio::test(start_paused = true)]
async fn providers_take_turns_when_the_process_has_no_place() {
    let desk = desk(Limits::default(), 1);
    let first = place(&desk, "a").await;
    let order = Mutex::new(Vec::new());
    let call = |lane: usize| {
        let (desk, order) = (&desk, &order);
        async move {
            let place = desk.place(lane, &thread("t"), 0).await;
            order.lock().expect("unbroken").push(lane);
            sleep(Duration::from_millis(10)).await;
            drop(place);
        }
    };
    let calls = join_all([0, 0, 0, 0, 1].map(call));
    let release = async {
        sleep(Duration::from_millis(10)).await;
        drop(first);
    };
    tokio::join!(calls, release);
    let order = order.into_inner().expect("unbroken");
    assert!(order[..3].contains(&1), "{order:?}");
}
