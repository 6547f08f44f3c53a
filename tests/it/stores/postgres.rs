//! What only a real database can show: migrations, foreign rows, neighbours in one statement, outages.

use agent_executor::{
    store::{Checkpoints, Error, Inspect, Jobs, Retention, Upkeep, postgres::Statements},
    value::Send,
};

use super::*;

/// LangGraph's own migrations, as its `setup()` runs them one by one.
const LANGGRAPH: [&str; 10] = [
    "CREATE TABLE IF NOT EXISTS checkpoint_migrations (v INTEGER PRIMARY KEY);",
    "CREATE TABLE IF NOT EXISTS checkpoints (
        thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL DEFAULT '', checkpoint_id TEXT NOT NULL,
        parent_checkpoint_id TEXT, type TEXT, checkpoint JSONB NOT NULL, metadata JSONB NOT NULL DEFAULT '{}',
        PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id));",
    "CREATE TABLE IF NOT EXISTS checkpoint_blobs (
        thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL DEFAULT '', channel TEXT NOT NULL,
        version TEXT NOT NULL, type TEXT NOT NULL, blob BYTEA NOT NULL,
        PRIMARY KEY (thread_id, checkpoint_ns, channel, version));",
    "CREATE TABLE IF NOT EXISTS checkpoint_writes (
        thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL DEFAULT '', checkpoint_id TEXT NOT NULL,
        task_id TEXT NOT NULL, idx INTEGER NOT NULL, channel TEXT NOT NULL, type TEXT, blob BYTEA NOT NULL,
        PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx));",
    "ALTER TABLE checkpoint_blobs ALTER COLUMN blob DROP not null;",
    "SELECT 1;",
    "CREATE INDEX CONCURRENTLY IF NOT EXISTS checkpoints_thread_id_idx ON checkpoints(thread_id);",
    "CREATE INDEX CONCURRENTLY IF NOT EXISTS checkpoint_blobs_thread_id_idx ON checkpoint_blobs(thread_id);",
    "CREATE INDEX CONCURRENTLY IF NOT EXISTS checkpoint_writes_thread_id_idx ON checkpoint_writes(thread_id);",
    "ALTER TABLE checkpoint_writes ADD COLUMN IF NOT EXISTS task_path TEXT NOT NULL DEFAULT '';",
];

/// Everything about the tables that a reader or writer could notice.
const SHAPE: &str = "
    select 'column', table_name, column_name, data_type, is_nullable, column_default from information_schema.columns
        where table_name like 'checkpoint%' and table_schema = current_schema()
    union all
    select 'index', tablename, indexname, indexdef, '', '' from pg_indexes
        where tablename like 'checkpoint%' and schemaname = current_schema()
    union all
    select 'version', v::text, '', '', '', '' from checkpoint_migrations
    order by 1, 2, 3";

/// What Python's `setup()` leaves behind when it is at `version`.
async fn python_setup(db: &InPostgres, version: usize) {
    for (v, migration) in LANGGRAPH.iter().enumerate().take(version + 1) {
        db.sql(migration).await;
        db.sql(&format!("insert into checkpoint_migrations values ({v})")).await;
    }
}

#[tokio::test]
async fn any_starting_point_ends_in_the_schema_python_makes() {
    let python = empty_postgres().await;
    python_setup(&python, 9).await;
    let expected = python.sql(SHAPE).await;
    assert_eq!(expected.lines().count(), 23 + 7 + 10, "{expected}");
    for version in [None, Some(1), Some(4), Some(7), Some(9)] {
        let db = empty_postgres().await;
        if let Some(version) = version {
            python_setup(&db, version).await;
        }
        for _ in 0..2 {
            PostgresStore::migrate(&db.config).await.expect("migrated");
            assert_eq!(db.sql(SHAPE).await, expected, "from {version:?}");
        }
        // And Python's setup() on top of it finds nothing to do.
        assert_eq!(db.sql("select max(v) from checkpoint_migrations").await, "9");
    }
}

#[tokio::test]
async fn many_processes_can_migrate_at_once() {
    let db = empty_postgres().await;
    let all = (0..4).map(|_| PostgresStore::migrate(&db.config));
    for result in futures::future::join_all(all).await {
        result.expect("migrated, by itself or by another");
    }
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/store/migrations");
    let steps = std::fs::read_dir(folder).expect("the migrations are there").count();
    let applied = db.sql("select count(*), bool_and(success) from executor_migrations").await;
    assert_eq!(applied, format!("{steps}|t"));
    claimed(&db.store("a").await, "j1", "t", 1).await;
}

#[tokio::test]
async fn everything_lives_in_the_schema_that_was_asked_for() {
    let mut db = empty_postgres().await;
    db.config.schema = Some("Agents-1".into());
    for _ in 0..2 {
        PostgresStore::migrate(&db.config).await.expect("migrated");
    }
    let store = db.store("a").await;
    let claim = claimed(&store, "j1", "t", 1).await;
    store.commit(step(&claim, None, &checkpoint(None, -1, &["x"]))).await.expect("stored");
    assert_eq!(db.sql("select count(*) from \"Agents-1\".checkpoints").await, "1");
    let strays = "select count(*) from pg_class where relnamespace = 'public'::regnamespace";
    assert_eq!(db.sql(strays).await, "0");
}

#[tokio::test]
async fn statements_need_no_memory_of_the_connection() {
    let mut db = in_postgres().await;
    db.config.statements = Statements::Unnamed;
    let store = db.store("a").await;
    let claim = claimed(&store, "j1", "t", 1).await;
    let first = checkpoint(None, -1, &["x"]);
    store.commit(step(&claim, None, &first)).await.expect("stored");
    let saved =
        store.load(&claim.thread_id, &Namespace::root(), None).await.expect("readable").expect("there");
    assert_eq!(saved.checkpoint, first);
    assert_eq!(db.sql("select count(*) from pg_prepared_statements").await, "0");
}

#[tokio::test]
async fn the_same_call_gets_its_grant_again_and_another_does_not() {
    let db = in_postgres().await;
    let accept = |nonce: &str| {
        format!(
            "select verdict, epoch, attempt from executor_accept(\
             array['j1'], array['t'], array[1], array['enqueue'], array['r'::bytea], array[60000], array['{nonce}'], \
             array[null::bigint], array[true], 'a', 60000, 5)"
        )
    };
    let granted = db.sql(&accept("n1")).await;
    assert!(granted.starts_with("run|"), "{granted}");
    assert_eq!(db.sql(&accept("n1")).await, granted);
    assert!(db.sql(&accept("n2")).await.starts_with("running_elsewhere|"));
    db.expire_leases().await;
    assert_eq!(db.sql(&accept("n1")).await, granted, "nobody else claimed it in between");
    db.expire_leases().await;
    let next = db.sql(&accept("n2")).await;
    assert!(next.starts_with("run|") && next != granted, "{next}");
    assert!(db.sql(&accept("n1")).await.starts_with("running_elsewhere|"));
}

#[tokio::test]
async fn a_text_the_database_refuses_does_not_spoil_its_neighbours() {
    let db = in_postgres().await;
    let store = db.store("a").await;
    let mut claims = Vec::new();
    for number in 0..6 {
        claims.push(claimed(&store, &format!("j{number}"), &format!("t{number}"), number).await);
    }
    let commits = claims.iter().enumerate().map(|(number, claim)| {
        let first = checkpoint(None, -1, &["x"]);
        let mut commit = step(claim, None, &first);
        let path = if number == 2 { "a\0b" } else { "a" };
        commit.writes = writes(claim, &first.id, vec![write(1, path, 0, "items", Value::Null)]).writes;
        store.commit(commit)
    });
    for (number, result) in futures::future::join_all(commits).await.into_iter().enumerate() {
        match result {
            Err(Error::Refused(text)) if number == 2 => assert!(text.contains("22021"), "{text}"),
            Ok(()) if number != 2 => {}
            other => panic!("{number}: {other:?}"),
        }
    }
    assert_eq!(db.sql("select count(*) from checkpoints").await, "5");
}

#[tokio::test]
async fn commits_of_one_thread_keep_their_order_in_any_crowd() {
    let db = in_postgres().await;
    let store = db.store("a").await;
    let claim = claimed(&store, "j1", "t", 1).await;
    let mut chain = Vec::<Checkpoint>::new();
    let mut commits = Vec::new();
    for number in 0..50 {
        let parent = chain.last().map(|parent| parent.id.clone());
        let next = checkpoint(parent.as_ref(), number - 1, &["x"]);
        commits.push(step(&claim, parent.as_ref(), &next));
        for task in 0..3 {
            let one = write(task, &format!("p{task}"), 0, "items", Value::from(number));
            commits.push(writes(&claim, &next.id, vec![one]));
        }
        chain.push(next);
    }
    // Each is handed in before the next one, and none waits for another's answer. Unconstrained, because tokio
    // would make some of so many in one task wait a turn.
    let mut handed_in = Vec::new();
    for commit in commits {
        let mut commit = Box::pin(tokio::task::unconstrained(store.commit(commit)));
        assert!(futures::poll!(&mut commit).is_pending());
        handed_in.push(commit);
    }
    for result in futures::future::join_all(handed_in).await {
        result.expect("stored");
    }
    let history = store.history(&claim.thread_id, &Namespace::root(), 200).await.expect("readable");
    assert_eq!(history.len(), 50);
    for (saved, expected) in history.iter().rev().zip(&chain) {
        assert_eq!((&saved.checkpoint, saved.writes.len()), (expected, 3));
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_stop_its_commit() {
    let db = in_postgres().await;
    let store = db.store("a").await;
    let claim = claimed(&store, "j1", "t", 1).await;
    let first = checkpoint(None, -1, &["x"]);
    let mut commit = Box::pin(store.commit(step(&claim, None, &first)));
    assert!(futures::poll!(&mut commit).is_pending());
    drop(commit);
    store.close().await;
    assert_eq!(db.sql("select count(*) from checkpoints").await, "1");
    let late = store.commit(step(&claim, None, &first)).await;
    assert!(matches!(late, Err(Error::Unavailable(_))), "{late:?}");
}

#[tokio::test]
async fn rows_of_older_and_other_writers_are_read() {
    let db = in_postgres().await;
    let store = db.store("a").await;
    let (parent, id) = ("1f1e533c-fc41-675c-bfff-95f64048935a", "1f1e533c-fc4a-6409-8000-cfea96b4c817");
    // A plain blob, an empty one, and a format in which the sends are still with the parent.
    db.sql(&format!(
        "insert into checkpoints (thread_id, checkpoint_id, parent_checkpoint_id, checkpoint, metadata) values
            ('t', '{id}', '{parent}', '{{\"v\": 3, \"id\": \"{id}\", \"ts\": \"now\", \"channel_values\": {{\"j\": 1}},
              \"channel_versions\": {{\"j\": \"1\", \"e\": \"1\", \"gone\": \"1\"}}, \"versions_seen\": {{}}}}',
             '{{\"step\": 4}}');
         insert into checkpoint_blobs (thread_id, channel, version, type, blob) values
            ('t', 'j', '1', 'json', '{{\"a\": [1]}}'), ('t', 'e', '1', 'empty', null);
         insert into checkpoint_writes (thread_id, checkpoint_id, task_id, idx, channel, type, blob) values
            ('t', '{parent}', 'x', 0, '__pregel_tasks', 'msgpack',
             '\\xc71d0193af6c616e6767726170682e7479706573a453656e6492a17781a17801')"
    ))
    .await;
    let saved = store.load(&thread("t"), &Namespace::root(), None).await.expect("readable").expect("there");
    let sends = Send { node: "w".into(), arg: Value::from(serde_json::json!({"x": 1})) };
    let values = [
        ("j".into(), Value::from(serde_json::json!({"a": [1]}))),
        ("__pregel_tasks".into(), Value::list(vec![Value::Send(Arc::new(sends))])),
    ];
    assert_eq!(saved.checkpoint.values, values.into_iter().collect::<agent_executor::value::State>());
    assert_eq!(
        (saved.metadata.step, saved.metadata.source, saved.checkpoint.updated),
        (4, Source::Loop, None)
    );

    for (change, named) in [
        ("update checkpoint_blobs set type = 'msgpack+aes' where channel = 'j'", "blob"),
        ("update checkpoint_blobs set type = 'msgpack' where channel = 'j'", "blob"),
        ("update checkpoints set metadata = '{}'", "checkpoint"),
        ("update checkpoints set checkpoint = checkpoint || '{\"v\": 2}'", "checkpoint"),
    ] {
        db.sql(change).await;
        match store.load(&thread("t"), &Namespace::root(), None).await {
            Err(Error::Corrupt { what, thread_id, .. }) => assert_eq!((what, &*thread_id), (named, "t")),
            other => panic!("{change}: {other:?}"),
        }
        if named == "blob" {
            db.sql("update checkpoint_blobs set type = 'json' where channel = 'j'").await;
        }
    }
}

#[tokio::test]
async fn a_database_without_its_schema_says_what_is_missing() {
    let db = empty_postgres().await;
    let store = db.store("a").await;
    let error = store.accept(&offer("j1", "t", 1)).await.expect_err("no functions");
    assert!(matches!(&error, Error::Refused(text) if text.contains("executor_accept")), "{error}");
    let config = Config { url: None, port: 1, host: "127.0.0.1".into(), ..Config::default() };
    let nobody = PostgresStore::connect(&config, "a").await.expect_err("nobody listens there");
    assert_eq!(nobody.code(), "STORE_UNAVAILABLE");
    assert_eq!(PostgresStore::migrate(&config).await.expect_err("neither").code(), "STORE_UNAVAILABLE");
}

/// A server of one's own, to be stopped.
async fn own_server() -> (servers::Postgres, Config) {
    let server = servers::Postgres::start().await.expect("PostgreSQL starts");
    let config =
        Config { url: Some(server.url().into()), lease: Duration::from_secs(600), ..Config::default() };
    PostgresStore::migrate(&config).await.expect("migrated");
    (server, config)
}

#[tokio::test]
async fn a_commit_outlives_the_death_of_the_database() {
    let (server, config) = own_server().await;
    let store = PostgresStore::connect(&config, "a").await.expect("up");
    let claim = claimed(&store, "j1", "t", 1).await;
    let first = checkpoint(None, -1, &["x"]);
    store.commit(step(&claim, None, &first)).await.expect("stored");

    server.kill().expect("killed");
    let second = checkpoint(Some(&first.id), 0, &["y"]);
    let mut commit = Box::pin(store.commit(step(&claim, Some(&first.id), &second)));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut commit).await;
    assert!(early.is_err(), "there is nobody to answer: {early:?}");
    assert_eq!(store.ping().await.expect_err("down").code(), "STORE_UNAVAILABLE");
    assert_eq!(store.accept(&offer("j2", "t2", 2)).await.expect_err("down").code(), "STORE_UNAVAILABLE");

    server.start_again().await.expect("back");
    commit.await.expect("stored in the end");
    // Every pooled connection is broken; the call finds a new one by itself.
    let saved =
        store.load(&claim.thread_id, &Namespace::root(), None).await.expect("readable").expect("there");
    assert_eq!(saved.checkpoint, second);
    claimed(&store, "j2", "t2", 2).await;
}

#[tokio::test]
async fn a_database_that_hangs_holds_nobody_up() {
    let (server, mut config) = own_server().await;
    config.statement_timeout = Duration::from_millis(500);
    let store = PostgresStore::connect(&config, "a").await.expect("up");
    let claim = claimed(&store, "j1", "t", 1).await;
    let first = checkpoint(None, -1, &["x"]);
    store.commit(step(&claim, None, &first)).await.expect("stored");

    server.pause().expect("frozen");
    let started = std::time::Instant::now();
    assert_eq!(store.ping().await.expect_err("frozen").code(), "STORE_UNAVAILABLE");
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    let second = checkpoint(Some(&first.id), 0, &["y"]);
    let mut commit = Box::pin(store.commit(step(&claim, Some(&first.id), &second)));
    let early = tokio::time::timeout(Duration::from_secs(1), &mut commit).await;
    assert!(early.is_err(), "nobody answers: {early:?}");
    server.resume().expect("goes on");
    commit.await.expect("stored in the end");
    assert_eq!(store.history(&claim.thread_id, &Namespace::root(), 9).await.expect("readable").len(), 2);
}

#[tokio::test]
async fn closing_does_not_wait_for_a_database_that_is_gone() {
    let (server, config) = own_server().await;
    let store = PostgresStore::connect(&config, "a").await.expect("up");
    let claim = claimed(&store, "j1", "t", 1).await;
    server.kill().expect("killed");
    let first = checkpoint(None, -1, &["x"]);
    let mut commit = Box::pin(store.commit(step(&claim, None, &first)));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut commit).await;
    assert!(early.is_err(), "nobody answers: {early:?}");
    store.close().await;
    assert_eq!(commit.await.expect_err("it never came back").code(), "STORE_UNAVAILABLE");
}

#[tokio::test]
async fn old_rows_of_the_ledger_are_removed_unless_somebody_must_decide() {
    let db = in_postgres().await;
    let row = |call: &str, state: &str, age: &str| {
        format!(
            "insert into executor_effect (thread_id, checkpoint_ns, task_id, call_id, tool, effect, idempotency_key, \
                 state, epoch, asked, updated_at) \
             values ('t', '', 'task', '{call}', 'post', 'irreversible', 'k', '{state}', 1, 0, now() - interval '{age}');"
        )
    };
    let rows =
        [row("old", "done", "8 days"), row("open", "unknown", "8 days"), row("young", "done", "6 days")];
    db.sql(&rows.concat()).await;
    let week = Retention { jobs: Some(Duration::from_secs(7 * 24 * 3600)), dead_letters: None };
    let removed = db.store("a").await.expire(&week, 10).await.expect("removed");
    assert_eq!(removed.effects, 1);
    assert_eq!(
        db.sql("select string_agg(call_id, ' ' order by call_id) from executor_effect").await,
        "open young"
    );
}

#[tokio::test]
async fn rows_that_cannot_be_read_spoil_neither_their_neighbours_nor_their_own_jobs() {
    let db = in_postgres().await;
    let store = db.store("a").await;
    // A checkpoint of somebody who names his own way, and a wish of a later version.
    db.sql(
        "insert into checkpoints (thread_id, checkpoint_id, checkpoint) values ('t1', 'zz-foreign', '{}');
         insert into executor_cancel (job_id, cancel) values ('j2', '{\"kind\": \"postpone\", \"by\": \"x\"}')",
    )
    .await;
    let offers: Vec<_> =
        (0..6).map(|number| offer(&format!("j{number}"), &format!("t{number}"), number)).collect();
    let verdicts = futures::future::join_all(offers.iter().map(|offer| store.accept(offer))).await;
    let mut claims = Vec::new();
    for (number, verdict) in verdicts.into_iter().enumerate() {
        match verdict {
            Ok(Verdict::Run(claim)) => claims.push(claim),
            other => panic!("{number}: {other:?}"),
        }
    }
    // The run loads what it is told to stand on, and fails; it must not take the thread for a new one.
    assert!(claims[1].head.is_some());
    let loaded = store.load(&claims[1].thread_id, &Namespace::root(), None).await;
    assert!(matches!(loaded, Err(Error::Corrupt { what: "checkpoint", .. })), "{loaded:?}");
    assert!(claims[2].cancel.is_some());
    let held: Vec<_> = claims.iter().map(|claim| (claim.thread_id.clone(), claim.epoch)).collect();
    assert_eq!(store.renew(&held).await.expect("all are read").len(), 6);
    for claim in &claims {
        store.finish(&ended(claim, NextJob::Leave)).await.expect("ends under its claim");
    }
    assert_eq!(db.sql("select count(*) from executor_job where finished_at is not null").await, "6");
}

#[tokio::test]
async fn large_requests_and_results_do_not_travel_under_locks() {
    let db = in_postgres().await;
    let (first, second) = (db.store("a").await, db.store("b").await);
    let large = |id: &str, seq| {
        let mut offer = offer(id, "t", seq);
        offer.record.request = format!("{id}{}", "x".repeat(100_000)).into_bytes().into();
        offer
    };
    let of = |verdict: Verdict| {
        let Verdict::Run(claim) = &verdict else { panic!("expected to run, got {verdict:?}") };
        claim.clone()
    };
    let (one, two) = (large("j1", 1), large("j2", 2));
    let claim = of(first.accept(&one).await.expect("accepted"));
    assert_eq!(claim.request, one.record.request);
    assert!(matches!(first.accept(&two).await, Ok(Verdict::Parked { .. })));

    // Released and offered again, by another message, and adopted: the bytes come back, though not with the lock.
    first.release(&claim).await.expect("released");
    let claim = of(second.accept(&large("j3", 3)).await.expect("accepted"));
    assert_eq!((&claim.job_id, &claim.request), (&one.record.job_id, &one.record.request));
    second.release(&claim).await.expect("released");
    let claim = of(first.adopt(&thread("t"), false).await.expect("answered").expect("orphaned"));
    assert_eq!((&claim.job_id, &claim.request), (&one.record.job_id, &one.record.request));
    first.release(&claim).await.expect("released");
    let in_row = "select octet_length(request) from executor_adopt('t', 'c', 'n', 60000, 5, false)";
    assert_eq!(db.sql(in_row).await, "", "a paused reader would keep the thread's row locked");
    db.sql("update executor_thread set owner = null").await;

    // Handed over with the end of the job before, whose own result is as large.
    let claim = of(first.adopt(&thread("t"), false).await.expect("answered").expect("orphaned"));
    let mut end = ended(&claim, NextJob::Take);
    end.result.event = vec![b'e'; 100_000].into();
    let event = end.result.event.clone();
    let next = first.finish(&end).await.expect("ended").expect("the next job");
    assert_eq!((&next.job_id, &next.request), (&two.record.job_id, &two.record.request));
    let verdict = second.accept(&one).await.expect("answered");
    let Verdict::DoneUnpublished { result, .. } = &verdict else { panic!("it has ended: {verdict:?}") };
    assert_eq!(result.event, event);
}

#[tokio::test]
async fn a_locked_thread_holds_up_nobody_else() {
    for statements in [Statements::Prepared, Statements::Unnamed] {
        let mut db = in_postgres().await;
        (db.config.statements, db.config.commit_connections) = (statements, 1);
        let store = db.store("a").await;
        let mut claims = Vec::new();
        for number in 0..3 {
            claims.push(claimed(&store, &format!("j{number}"), &format!("t{number}"), number).await);
        }
        let (server, database) = (db.server, db.database.clone());
        let holder = tokio_util::task::TaskTracker::new().spawn(async move {
            let hold =
                "select 1 from executor_thread where thread_id = 't0' for update; select pg_sleep(120)";
            // It is ended by force.
            let _ = server.sql(&database, hold).await;
        });
        let sleeping = "from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'";
        let holds = async { while db.sql(&format!("select count(*) {sleeping}")).await != "1" {} };
        tokio::time::timeout(Duration::from_secs(30), holds).await.expect("somebody holds the row");

        let firsts: Vec<_> = claims.iter().map(|_| checkpoint(None, -1, &["x"])).collect();
        let mut commits: Vec<_> = claims
            .iter()
            .zip(&firsts)
            .map(|(claim, first)| Box::pin(store.commit(step(claim, None, first))))
            .collect();
        for commit in &mut commits {
            assert!(futures::poll!(commit).is_pending());
        }
        let second = checkpoint(Some(&firsts[0].id), 0, &["y"]);
        let mut behind = Box::pin(store.commit(step(&claims[0], Some(&firsts[0].id), &second)));
        assert!(futures::poll!(&mut behind).is_pending());
        let mut locked = commits.remove(0);
        let soon = Duration::from_secs(12);
        for result in
            tokio::time::timeout(soon, futures::future::join_all(commits)).await.expect("not held up")
        {
            result.expect("stored");
        }
        let end = ended(&claims[1], NextJob::Leave);
        tokio::time::timeout(soon, store.finish(&end)).await.expect("not held up").expect("ended");
        let (new, other) = (offer("j8", "t0", 8), offer("j9", "t9", 9));
        let accepts = futures::future::join(store.accept(&new), store.accept(&other));
        let (new, other) = tokio::time::timeout(soon, accepts).await.expect("not held up");
        assert!(matches!(new, Err(Error::Unavailable(_))), "{new:?}");
        assert!(matches!(other, Ok(Verdict::Run(_))), "{other:?}");
        assert!(futures::poll!(&mut locked).is_pending(), "its row is locked");

        db.sql(&format!("select pg_terminate_backend(pid) {sleeping}")).await;
        holder.await.expect("ended");
        locked.await.expect("stored in the end");
        behind.await.expect("stored after it");
        let saved = store.load(&claims[0].thread_id, &Namespace::root(), None).await.expect("readable");
        assert_eq!(saved.expect("there").checkpoint, second);
    }
}
