-- LangGraph's three tables of checkpoints in the shape they have in Postgres, and ours: jobs, the ownership of
-- threads, results, dead letters, the ledger of effects. Times are nanoseconds since 1970 by the clock of the process
-- that writes; JSON is text. The rules stand in Rust, each in one transaction that holds the only write lock.

CREATE TABLE checkpoints (
    thread_id            TEXT NOT NULL,
    checkpoint_ns        TEXT NOT NULL DEFAULT '',
    checkpoint_id        TEXT NOT NULL,
    parent_checkpoint_id TEXT,
    type                 TEXT,
    checkpoint           TEXT NOT NULL,
    metadata             TEXT NOT NULL DEFAULT '{}',
    PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id)
) STRICT;

CREATE TABLE checkpoint_blobs (
    thread_id     TEXT NOT NULL,
    checkpoint_ns TEXT NOT NULL DEFAULT '',
    channel       TEXT NOT NULL,
    version       TEXT NOT NULL,
    type          TEXT NOT NULL,
    blob          BLOB,
    PRIMARY KEY (thread_id, checkpoint_ns, channel, version)
) STRICT;

CREATE TABLE checkpoint_writes (
    thread_id     TEXT NOT NULL,
    checkpoint_ns TEXT NOT NULL DEFAULT '',
    checkpoint_id TEXT NOT NULL,
    task_id       TEXT NOT NULL,
    idx           INTEGER NOT NULL,
    channel       TEXT NOT NULL,
    type          TEXT,
    blob          BLOB NOT NULL,
    task_path     TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
) STRICT;

-- The last fencing token; never reset. One row.
CREATE TABLE executor_epoch (
    one  INTEGER PRIMARY KEY CHECK (one = 1),
    last INTEGER NOT NULL
) STRICT;
INSERT INTO executor_epoch (one, last) VALUES (1, 0);

CREATE TABLE executor_thread (
    thread_id    TEXT PRIMARY KEY,
    epoch        INTEGER NOT NULL DEFAULT 0,               -- fencing token of the last claim
    owner        TEXT,                                     -- one process; NULL = free
    chained_from INTEGER,                                  -- the epoch whose end handed the thread on to this claim
    job_id       TEXT,                                     -- job that runs under the lease
    lease_until  INTEGER NOT NULL DEFAULT 0,
    head         TEXT                                      -- newest root checkpoint
) STRICT;

CREATE TABLE executor_job (
    job_id          TEXT PRIMARY KEY,
    thread_id       TEXT NOT NULL,
    stream_seq      INTEGER,                               -- jobs of a thread start in this order; NULL: no place yet
    copy_seq        INTEGER,                               -- place of a copy of its message
    state           TEXT NOT NULL CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'dead')),
    policy          TEXT NOT NULL,
    attempt         INTEGER NOT NULL DEFAULT 0,            -- claims so far
    charged         TEXT NOT NULL DEFAULT '[]',            -- epochs whose owner vanished without progress
    head_at_claim   TEXT,
    base_head       TEXT,                                  -- head of the thread when the job was first claimed
    cancel          TEXT,                                  -- {"kind", "by", "reason"}
    decided         INTEGER NOT NULL DEFAULT 0,            -- whether its policy was applied to the jobs before it
    request         BLOB NOT NULL,
    accepted_at     INTEGER NOT NULL,
    deadline_at     INTEGER NOT NULL,
    finished_at     INTEGER,
    finished_epoch  INTEGER,
    result_event_id TEXT,
    result_subject  TEXT,
    result          BLOB,
    result_body     BLOB,                                  -- the full event, when "result" only refers to it
    error           TEXT,
    published_at    INTEGER,
    agent_hash      TEXT                                   -- the stored definition it runs, the same in every attempt
) STRICT;
CREATE INDEX executor_job_open ON executor_job (thread_id) WHERE finished_at IS NULL;
CREATE UNIQUE INDEX executor_job_one_running ON executor_job (thread_id) WHERE state = 'running';
CREATE INDEX executor_job_unpublished ON executor_job (finished_at) WHERE published_at IS NULL;

-- Wishes to cancel a job that nobody has heard of yet.
CREATE TABLE executor_cancel (
    job_id     TEXT PRIMARY KEY,
    cancel     TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

-- Duties that one process at a time does.
CREATE TABLE executor_duty (
    name     TEXT PRIMARY KEY,
    taken_at INTEGER NOT NULL
) STRICT;

CREATE TABLE executor_dead_letter (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    stream        TEXT NOT NULL,
    stream_seq    INTEGER NOT NULL,
    subject       TEXT NOT NULL,
    headers       TEXT NOT NULL,                           -- list of [name, value]
    payload       BLOB NOT NULL,
    job_id        TEXT,
    thread_id     TEXT,
    reason        TEXT NOT NULL,
    error         TEXT NOT NULL,
    detail        TEXT NOT NULL,
    deliveries    INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    replays       INTEGER NOT NULL DEFAULT 0,
    replayed_at   INTEGER,
    replay_msg_id TEXT,
    replay_job_id TEXT,
    discarded_at  INTEGER,
    UNIQUE (stream, stream_seq)
) STRICT;

CREATE TABLE executor_effect (
    thread_id       TEXT NOT NULL,
    checkpoint_ns   TEXT NOT NULL,
    task_id         TEXT NOT NULL,                         -- the same in every attempt
    call_id         TEXT NOT NULL,                         -- the model's id of the call
    tool            TEXT NOT NULL,
    effect          TEXT NOT NULL CHECK (effect IN ('idempotent', 'irreversible')),
    idempotency_key TEXT NOT NULL,
    state           TEXT NOT NULL CHECK (state IN ('intended', 'done', 'failed', 'unknown')),
    epoch           INTEGER NOT NULL,                      -- claim under which it got there
    asked           INTEGER NOT NULL,                      -- answers the task had used by then
    answer          BLOB,                                  -- msgpack; NULL until it is done or failed
    updated_at      INTEGER NOT NULL,
    PRIMARY KEY (thread_id, checkpoint_ns, task_id, call_id)
) STRICT;

-- Questions that are answered by themselves when nobody answers them in time.
CREATE TABLE executor_interrupt_deadline (
    thread_id    TEXT NOT NULL,
    interrupt_id TEXT NOT NULL,
    due_at       INTEGER NOT NULL,
    answer       TEXT NOT NULL,                            -- JSON
    request      BLOB NOT NULL,                            -- of the job that asked
    PRIMARY KEY (thread_id, interrupt_id)
) STRICT;

-- Stored definitions: what a name and a version stand for never changes.
CREATE TABLE executor_agent (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,          -- the newest version of a name has the greatest
    name       TEXT NOT NULL,
    version    TEXT NOT NULL,
    hash       TEXT NOT NULL,                              -- SHA-256 of the canonical JSON, in hex
    definition BLOB NOT NULL,                              -- as it was put
    created_at INTEGER NOT NULL,
    UNIQUE (name, version)
) STRICT;
CREATE INDEX executor_agent_newest ON executor_agent (name, id);
CREATE INDEX executor_agent_hash ON executor_agent (hash);

-- What nodes wrote, by a digest of what they do and read. Rows say the same whoever writes them, so they belong to no
-- thread and need no fence.
CREATE TABLE executor_node_cache (
    key        BLOB PRIMARY KEY,                           -- SHA-256
    node       TEXT NOT NULL,                              -- for operators
    writes     BLOB NOT NULL,                              -- msgpack
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX executor_node_cache_old ON executor_node_cache (expires_at);
