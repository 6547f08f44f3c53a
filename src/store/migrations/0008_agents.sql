-- Stored definitions, and what operators do with whole threads.
-- As before every function locks the row of its thread first, and looks afterwards.

CREATE TABLE executor_agent (
    id         bigint GENERATED ALWAYS AS IDENTITY,       -- the newest version of a name has the greatest
    name       text NOT NULL,
    version    text NOT NULL,
    hash       text NOT NULL,                             -- SHA-256 of the canonical JSON, in hex
    definition bytea NOT NULL,                            -- as it was put
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (name, version)
);
CREATE INDEX executor_agent_newest ON executor_agent (name, id);
CREATE INDEX executor_agent_hash ON executor_agent (hash);

-- The stored definition a job runs: found once, so that every attempt runs the same.
-- Whoever waited for the table would hold up everybody else: the step gives up soon, and is tried again.
SELECT set_config('lock_timeout', '2s', true);
ALTER TABLE executor_job ADD COLUMN agent_hash text;
SET LOCAL lock_timeout TO DEFAULT;

-- Notes which definition the job runs, unless that is noted already; NULL when there is no such definition.
CREATE FUNCTION executor_pin_agent(p_job text, p_name text, p_version text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    pinned text;
BEGIN
    UPDATE executor_job x SET agent_hash = a.hash
        FROM (SELECT y.hash FROM executor_agent y WHERE y.name = p_name AND (p_version IS NULL OR y.version = p_version)
              ORDER BY y.id DESC LIMIT 1) a
        WHERE x.job_id = p_job AND x.agent_hash IS NULL RETURNING x.agent_hash INTO pinned;
    IF pinned IS NULL THEN
        SELECT x.agent_hash INTO pinned FROM executor_job x WHERE x.job_id = p_job;
    END IF;
    RETURN pinned;
END $$;

-- Whether somebody is to answer before a thread goes on from this root checkpoint: a question stands on it, or it is
-- about to run nodes or sends and none of them has failed. The last is how LangGraph stores that it stops before a node.
-- A channel of sends that is empty is stored as an empty list, in msgpack or as LangGraph's old JSON.
CREATE FUNCTION executor_waits(p_thread text, p_checkpoint text) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT 1 FROM checkpoint_writes w WHERE w.thread_id = p_thread AND w.checkpoint_ns = ''
            AND w.checkpoint_id = p_checkpoint AND w.channel = '__interrupt__')
        OR (EXISTS (SELECT 1 FROM checkpoints c, jsonb_object_keys(c.checkpoint -> 'channel_values') k
                WHERE c.thread_id = p_thread AND c.checkpoint_ns = '' AND c.checkpoint_id = p_checkpoint
                  AND k LIKE 'branch:to:%')
            OR EXISTS (SELECT 1 FROM checkpoints c JOIN checkpoint_blobs b ON b.thread_id = c.thread_id
                    AND b.checkpoint_ns = '' AND b.channel = '__pregel_tasks'
                    AND b.version = c.checkpoint -> 'channel_versions' ->> '__pregel_tasks'
                WHERE c.thread_id = p_thread AND c.checkpoint_ns = '' AND c.checkpoint_id = p_checkpoint
                  AND b.type <> 'empty' AND b.blob NOT IN ('\x90', '\x5b5d')))
        AND NOT EXISTS (SELECT 1 FROM checkpoint_writes w WHERE w.thread_id = p_thread AND w.checkpoint_ns = ''
            AND w.checkpoint_id = p_checkpoint AND w.channel = '__error__') $$;

-- Why nobody but its jobs may touch a thread whose row the caller has locked; NULL when it is free. With p_queued, jobs
-- that have not started yet count too.
CREATE FUNCTION executor_barred(p_thread text, p_queued boolean, OUT reason text, OUT job text) LANGUAGE plpgsql AS $$
DECLARE
    t executor_thread;
BEGIN
    SELECT * INTO t FROM executor_thread x WHERE x.thread_id = p_thread;
    IF t.owner IS NOT NULL AND t.lease_until > clock_timestamp() THEN
        reason := 'owned';
        job := t.job_id;
        RETURN;
    END IF;
    SELECT 'open', x.job_id INTO reason, job FROM executor_job x
        WHERE x.thread_id = p_thread AND (x.state = 'running' OR p_queued AND x.state = 'queued')
        ORDER BY x.state = 'running' DESC, x.stream_seq LIMIT 1;
END $$;

-- Claims a thread for an operator, who writes to it under the epoch as a job would.
CREATE FUNCTION executor_seize(p_thread text, p_owner text, p_nonce text, p_ttl_ms bigint)
RETURNS TABLE (verdict text, job_id text, epoch bigint, head text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    t executor_thread;
    latest text;
    why text;
    whose text;
BEGIN
    IF NOT EXISTS (SELECT 1 FROM checkpoints c WHERE c.thread_id = p_thread) THEN
        RETURN QUERY SELECT 'unknown', NULL::text, NULL::bigint, NULL::text;
        RETURN;
    END IF;
    INSERT INTO executor_thread (thread_id) VALUES (p_thread) ON CONFLICT DO NOTHING;
    SELECT * INTO t FROM executor_thread x WHERE x.thread_id = p_thread FOR UPDATE;
    IF t.owner = p_owner AND t.nonce = p_nonce THEN          -- the answer of this very call was lost
        RETURN QUERY SELECT 'held', NULL::text, t.epoch, t.head;
        RETURN;
    END IF;
    SELECT b.reason, b.job INTO why, whose FROM executor_barred(p_thread, false) b;
    IF why IS NOT NULL THEN
        RETURN QUERY SELECT why, whose, NULL::bigint, NULL::text;
        RETURN;
    END IF;
    SELECT c.checkpoint_id INTO latest FROM checkpoints c
        WHERE c.thread_id = p_thread AND c.checkpoint_ns = '' ORDER BY c.checkpoint_id DESC LIMIT 1;
    UPDATE executor_thread x SET epoch = nextval('executor_epoch_seq'), owner = p_owner, nonce = p_nonce, job_id = NULL,
            lease_until = clock_timestamp() + p_ttl_ms * interval '1 millisecond', head = latest
        WHERE x.thread_id = p_thread RETURNING * INTO t;
    RETURN QUERY SELECT 'held', NULL::text, t.epoch, t.head;
END $$;

-- Removes all that a thread has said and done; its jobs keep their results. The caller has locked its row.
CREATE FUNCTION executor_wipe(p_thread text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    removed bigint;
BEGIN
    DELETE FROM checkpoint_writes x WHERE x.thread_id = p_thread;
    DELETE FROM checkpoint_blobs x WHERE x.thread_id = p_thread;
    DELETE FROM executor_effect x WHERE x.thread_id = p_thread;
    DELETE FROM executor_interrupt_deadline x WHERE x.thread_id = p_thread;
    DELETE FROM checkpoints x WHERE x.thread_id = p_thread;
    GET DIAGNOSTICS removed = ROW_COUNT;
    UPDATE executor_thread x SET epoch = nextval('executor_epoch_seq'), owner = NULL, nonce = NULL, job_id = NULL,
            lease_until = '-infinity', head = NULL
        WHERE x.thread_id = p_thread;
    RETURN removed;
END $$;

CREATE FUNCTION executor_delete_thread(p_thread text)
RETURNS TABLE (verdict text, job_id text, checkpoints bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    why text;
    whose text;
BEGIN
    IF NOT EXISTS (SELECT 1 FROM checkpoints c WHERE c.thread_id = p_thread) THEN
        RETURN QUERY SELECT 'unknown', NULL::text, NULL::bigint;
        RETURN;
    END IF;
    INSERT INTO executor_thread (thread_id) VALUES (p_thread) ON CONFLICT DO NOTHING;
    PERFORM 1 FROM executor_thread x WHERE x.thread_id = p_thread FOR UPDATE;
    SELECT b.reason, b.job INTO why, whose FROM executor_barred(p_thread, true) b;
    IF why IS NOT NULL THEN
        RETURN QUERY SELECT why, whose, NULL::bigint;
        RETURN;
    END IF;
    RETURN QUERY SELECT 'done', NULL::text, executor_wipe(p_thread);
END $$;

-- Copies a root checkpoint, those before it and what hangs on them to a thread that has none. What a living process
-- does right now with the newest one cannot be copied: calls could be made twice.
CREATE FUNCTION executor_copy_thread(p_from text, p_at text, p_to text)
RETURNS TABLE (verdict text, job_id text, checkpoints bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    kept text[];
    copied bigint;
    why text;
    whose text;
BEGIN
    INSERT INTO executor_thread (thread_id) SELECT x FROM unnest(ARRAY[p_from, p_to]) AS x ORDER BY 1 ON CONFLICT DO NOTHING;
    PERFORM 1 FROM executor_thread x WHERE x.thread_id IN (p_from, p_to) ORDER BY x.thread_id FOR UPDATE;
    WITH RECURSIVE chain AS (
        SELECT c.checkpoint_id, c.parent_checkpoint_id FROM checkpoints c
            WHERE c.thread_id = p_from AND c.checkpoint_ns = '' AND c.checkpoint_id = p_at
        UNION
        SELECT c.checkpoint_id, c.parent_checkpoint_id FROM checkpoints c JOIN chain h ON c.checkpoint_id = h.parent_checkpoint_id
            WHERE c.thread_id = p_from AND c.checkpoint_ns = ''
    )
    SELECT coalesce(array_agg(chain.checkpoint_id), '{}') INTO kept FROM chain;
    IF cardinality(kept) = 0 THEN
        RETURN QUERY SELECT 'unknown', NULL::text, NULL::bigint;
        RETURN;
    END IF;
    IF EXISTS (SELECT 1 FROM checkpoints c WHERE c.thread_id = p_to)
        OR (SELECT b.reason IS NOT NULL FROM executor_barred(p_to, true) b) THEN
        RETURN QUERY SELECT 'exists', NULL::text, NULL::bigint;
        RETURN;
    END IF;
    SELECT b.reason, b.job INTO why, whose FROM executor_barred(p_from, false) b;
    IF why IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM checkpoints c WHERE c.thread_id = p_from AND c.checkpoint_ns = '' AND c.checkpoint_id > p_at) THEN
        RETURN QUERY SELECT why, whose, NULL::bigint;
        RETURN;
    END IF;
    INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata)
        SELECT p_to, c.checkpoint_ns, c.checkpoint_id, c.parent_checkpoint_id, c.type, c.checkpoint, c.metadata
        FROM checkpoints c WHERE c.thread_id = p_from
          AND CASE WHEN c.checkpoint_ns = '' THEN c.checkpoint_id ELSE c.metadata -> 'parents' ->> '' END = ANY (kept);
    GET DIAGNOSTICS copied = ROW_COUNT;
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
        SELECT DISTINCT ON (b.checkpoint_ns, b.channel, b.version)
            p_to, b.checkpoint_ns, b.channel, b.version, b.type, b.blob
        FROM checkpoints c, jsonb_each_text(c.checkpoint -> 'channel_versions') v
            JOIN checkpoint_blobs b ON b.channel = v.key AND b.version = v.value
        WHERE c.thread_id = p_to AND b.thread_id = p_from AND b.checkpoint_ns = c.checkpoint_ns;
    INSERT INTO checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path)
        SELECT p_to, w.checkpoint_ns, w.checkpoint_id, w.task_id, w.idx, w.channel, w.type, w.blob, w.task_path
        FROM checkpoints c JOIN checkpoint_writes w
            ON w.checkpoint_ns = c.checkpoint_ns AND w.checkpoint_id = c.checkpoint_id
        WHERE c.thread_id = p_to AND w.thread_id = p_from;
    -- What was called already must not be called again by the copy.
    INSERT INTO executor_effect (thread_id, checkpoint_ns, task_id, call_id, tool, effect, idempotency_key, state, epoch,
            asked, answer)
        SELECT p_to, e.checkpoint_ns, e.task_id, e.call_id, e.tool, e.effect, e.idempotency_key, e.state, e.epoch,
            e.asked, e.answer
        FROM executor_effect e WHERE e.thread_id = p_from ON CONFLICT DO NOTHING;
    RETURN QUERY SELECT 'done', NULL::text, copied;
END $$;

-- Removes the old of a thread but its newest root checkpoint, and the newest of each nested graph that was started from
-- it, or while it waits of all: a graph that has failed goes on from there, and must not make its calls again.
-- Sends of checkpoints of older LangGraph versions stand among the writes on the checkpoint before.
CREATE FUNCTION executor_thin(p_thread text, p_newest text, p_nested boolean) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    removed bigint;
BEGIN
    DELETE FROM checkpoints x WHERE x.thread_id = p_thread AND NOT (
        CASE WHEN x.checkpoint_ns = '' THEN x.checkpoint_id = p_newest
        ELSE (p_nested OR coalesce(x.metadata -> 'parents' ->> '' = p_newest, false)) AND x.checkpoint_id = (SELECT max(y.checkpoint_id COLLATE "C") FROM checkpoints y
            WHERE y.thread_id = p_thread AND y.checkpoint_ns = x.checkpoint_ns) END);
    GET DIAGNOSTICS removed = ROW_COUNT;
    DELETE FROM checkpoint_writes x WHERE x.thread_id = p_thread AND NOT EXISTS (
        SELECT 1 FROM checkpoints c WHERE c.thread_id = p_thread AND c.checkpoint_ns = x.checkpoint_ns
          AND (c.checkpoint_id = x.checkpoint_id
            OR c.parent_checkpoint_id = x.checkpoint_id AND x.channel = '__pregel_tasks'));
    DELETE FROM checkpoint_blobs x WHERE x.thread_id = p_thread AND NOT EXISTS (
        SELECT 1 FROM checkpoints c WHERE c.thread_id = p_thread AND c.checkpoint_ns = x.checkpoint_ns
          AND c.checkpoint -> 'channel_versions' ->> x.channel = x.version);
    RETURN removed;
END $$;

-- Looks at p_limit threads behind p_after and removes, or thins out, those that have been silent since before
-- the checkpoint id p_before. No row while another process does.
CREATE FUNCTION executor_expire_threads(p_before text, p_keep_latest boolean, p_waiting boolean, p_after text, p_limit int)
RETURNS TABLE (last text, looked bigint, threads bigint, checkpoints bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    found_id text;
    newest text;
    waits boolean;
    removed bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('agent-executor retention ' || current_schema(), 0)) THEN
        RETURN;
    END IF;
    last := p_after;
    looked := 0;
    threads := 0;
    checkpoints := 0;
    WHILE looked < p_limit LOOP
        SELECT c.thread_id INTO found_id FROM checkpoints c WHERE c.thread_id > last ORDER BY c.thread_id LIMIT 1;
        EXIT WHEN found_id IS NULL;
        last := found_id;
        looked := looked + 1;
        SELECT c.checkpoint_id INTO newest FROM checkpoints c
            WHERE c.thread_id = found_id AND c.checkpoint_ns = '' ORDER BY c.checkpoint_id DESC LIMIT 1;
        CONTINUE WHEN newest IS NULL OR newest COLLATE "C" >= p_before;
        CONTINUE WHEN p_keep_latest AND NOT EXISTS (
            SELECT 1 FROM checkpoints c WHERE c.thread_id = found_id AND c.checkpoint_id <> newest);
        INSERT INTO executor_thread (thread_id) VALUES (found_id) ON CONFLICT DO NOTHING;
        PERFORM 1 FROM executor_thread x WHERE x.thread_id = found_id FOR UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        CONTINUE WHEN (SELECT b.reason IS NOT NULL FROM executor_barred(found_id, true) b);
        -- It may have grown while nobody held it.
        SELECT c.checkpoint_id INTO newest FROM checkpoints c
            WHERE c.thread_id = found_id AND c.checkpoint_ns = '' ORDER BY c.checkpoint_id DESC LIMIT 1;
        CONTINUE WHEN newest IS NULL OR newest COLLATE "C" >= p_before;
        waits := executor_waits(found_id, newest);
        CONTINUE WHEN waits AND NOT p_waiting;
        removed := CASE WHEN p_keep_latest THEN executor_thin(found_id, newest, waits) ELSE executor_wipe(found_id) END;
        threads := threads + (removed > 0)::int;
        checkpoints := checkpoints + removed;
    END LOOP;
    RETURN NEXT;
END $$;

ALTER FUNCTION executor_seize SET lock_timeout = '2s';
ALTER FUNCTION executor_delete_thread SET lock_timeout = '2s';
ALTER FUNCTION executor_copy_thread SET lock_timeout = '2s';
ALTER FUNCTION executor_expire_threads SET lock_timeout = '2s';
