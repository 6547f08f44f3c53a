-- What nodes wrote, by a digest of what they do and read. Rows say the same whoever writes them, so they belong to no
-- thread and need no fence.
CREATE TABLE executor_node_cache (
    key        bytea PRIMARY KEY,                         -- SHA-256
    node       text NOT NULL,                             -- for operators
    writes     bytea NOT NULL,                            -- msgpack
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX executor_node_cache_old ON executor_node_cache (expires_at);
