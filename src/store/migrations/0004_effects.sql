-- The ledger of effects: calls of tools that do something outside, before they are made and after.
-- Rows are written in the statement of the group commit, by whoever holds the thread.
CREATE TABLE executor_effect (
    thread_id       text NOT NULL,
    checkpoint_ns   text NOT NULL,
    task_id         text NOT NULL,                        -- the same in every attempt
    call_id         text NOT NULL,                        -- the model's id of the call
    tool            text NOT NULL,
    effect          text NOT NULL CHECK (effect IN ('idempotent', 'irreversible')),
    idempotency_key text NOT NULL,
    state           text NOT NULL CHECK (state IN ('intended', 'done', 'failed', 'unknown')),
    epoch           bigint NOT NULL,                      -- claim under which it got there
    asked           int NOT NULL,                         -- answers the task had used by then
    answer          bytea,                                -- msgpack; NULL until it is done or failed
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (thread_id, checkpoint_ns, task_id, call_id)
);
-- For operators: what waits for a person.
CREATE INDEX executor_effect_unknown ON executor_effect (updated_at) WHERE state = 'unknown';
