-- Questions that are answered by themselves when nobody answers them in time.
CREATE TABLE executor_interrupt_deadline (
    thread_id    text NOT NULL,
    interrupt_id text NOT NULL,
    due_at       timestamptz NOT NULL,
    answer       bytea NOT NULL,                          -- JSON
    request      bytea NOT NULL,                          -- of the job that asked
    PRIMARY KEY (thread_id, interrupt_id)
);
CREATE INDEX executor_interrupt_deadline_due ON executor_interrupt_deadline (due_at);
