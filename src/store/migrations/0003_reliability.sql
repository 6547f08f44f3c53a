-- Cancelling, double texting, jobs without a message, and one statement for the calls of many jobs.
-- As before every function locks the rows of its threads first, in key order, and looks afterwards.

ALTER TABLE executor_job
    DROP COLUMN cancel,
    DROP COLUMN publish_started_at,
    ALTER COLUMN stream_seq DROP NOT NULL,                -- NULL: recorded before its message has a place
    ADD COLUMN cancel jsonb,                              -- {"kind": cancel|interrupt|rollback|reject, "by", "reason"}
    ADD COLUMN base_head text,                            -- head of the thread when the job was first claimed
    ADD COLUMN decided boolean NOT NULL DEFAULT false;    -- whether its policy was applied to the jobs before it

-- Wishes to cancel a job that nobody has heard of yet.
CREATE TABLE executor_cancel (
    job_id     text PRIMARY KEY,
    cancel     jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Duties that one process at a time does.
CREATE TABLE executor_duty (
    name     text PRIMARY KEY,
    taken_at timestamptz NOT NULL
);

DROP FUNCTION executor_accept;
DROP FUNCTION executor_finish;
DROP FUNCTION executor_heartbeat;

-- Whether a queued job may be taken up. One that was recorded before its message was published waits a moment:
-- when publishing fails, it is taken back.
CREATE FUNCTION executor_ready(p_seq bigint, p_accepted timestamptz) RETURNS boolean LANGUAGE sql AS $$
    SELECT p_seq IS NOT NULL OR p_accepted < clock_timestamp() - interval '10 seconds' $$;

-- What may travel while rows are locked. A reader that was paused or cut off holds up the statement that writes to
-- it, and all its locks, so the answer to a full batch must fit the buffers of a connection. NULL: read it afterwards.
CREATE FUNCTION executor_inline(p_bytes bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN octet_length(p_bytes) <= 1024 THEN p_bytes END $$;

-- Claims the next open job of a thread whose row the caller has locked. No row when there is none.
CREATE FUNCTION executor_claim(
    p_thread text, p_owner text, p_nonce text, p_ttl_ms bigint, p_max_crashes int, p_lane boolean)
RETURNS TABLE (verdict text, job_id text, epoch bigint, attempt int, head text, request bytea, time_ms bigint,
               cancel text, suspect boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    t executor_thread;
    nxt executor_job;
    latest text;
    suspects bigint[];
BEGIN
    SELECT * INTO t FROM executor_thread x WHERE x.thread_id = p_thread;
    -- A started job first, then the order of the stream; those without a place in it last.
    SELECT * INTO nxt FROM executor_job x
        WHERE x.thread_id = p_thread AND x.state IN ('queued', 'running')
          AND (x.state = 'running' OR executor_ready(x.stream_seq, x.accepted_at))
        ORDER BY x.state = 'running' DESC, x.stream_seq, x.accepted_at LIMIT 1
        FOR NO KEY UPDATE;                                                              -- a refund may be under way
    IF nxt.job_id IS NULL THEN
        RETURN;
    END IF;
    SELECT c.checkpoint_id INTO latest FROM checkpoints c
        WHERE c.thread_id = p_thread AND c.checkpoint_ns = '' ORDER BY c.checkpoint_id DESC LIMIT 1;
    suspects := CASE
        WHEN nxt.attempt > 0 AND nxt.head_at_claim IS DISTINCT FROM latest THEN '{}'    -- progress clears suspicion
        WHEN nxt.state = 'running' AND t.owner <> p_owner AND NOT t.epoch = ANY (nxt.charged)
            THEN nxt.charged || t.epoch                                                 -- its owner vanished
        ELSE nxt.charged END;                                                           -- it was released, or its owner asks
    -- What is cancelled is not run, so it is no danger.
    IF cardinality(suspects) >= 2 AND NOT p_lane AND nxt.cancel IS NULL THEN
        RETURN QUERY SELECT 'need_lane', nxt.job_id, NULL::bigint, nxt.attempt, NULL::text, NULL::bytea,
            NULL::bigint, NULL::text, true;
        RETURN;
    END IF;
    UPDATE executor_job x SET state = 'running', attempt = x.attempt + 1, head_at_claim = latest, charged = suspects,
            decided = true, base_head = CASE WHEN x.attempt = 0 THEN latest ELSE x.base_head END
        WHERE x.job_id = nxt.job_id RETURNING * INTO nxt;
    UPDATE executor_thread x SET epoch = nextval('executor_epoch_seq'), owner = p_owner, nonce = p_nonce,
            job_id = nxt.job_id, lease_until = clock_timestamp() + p_ttl_ms * interval '1 millisecond', head = latest
        WHERE x.thread_id = p_thread RETURNING * INTO t;
    RETURN QUERY SELECT
        CASE WHEN cardinality(suspects) >= p_max_crashes AND nxt.cancel IS NULL THEN 'poison' ELSE 'run' END,
        nxt.job_id, t.epoch, nxt.attempt, t.head, executor_inline(nxt.request), executor_time_left(nxt.deadline_at),
        nxt.cancel::text, cardinality(suspects) >= 2;
END $$;

-- Records the jobs that are new, and claims each thread that is free. A claimed job may be an older one.
-- One answer per offer, by its number from 1. An empty request is the one that was offered. What nearly all offers are,
-- a new job on a free thread with nothing open, is recorded as running at once; the others go the long way.
CREATE FUNCTION executor_accept(
    p_jobs text[], p_threads text[], p_seqs bigint[], p_policies text[], p_requests bytea[], p_timeouts bigint[],
    p_nonces text[], p_running bigint[], p_lanes boolean[], p_owner text, p_ttl_ms bigint, p_max_crashes int)
RETURNS TABLE (nr int, verdict text, job_id text, epoch bigint, attempt int, head text, request bytea,
               time_ms bigint, cancel text, suspect boolean, event_id text, subject text, event bytea)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    o record;
    t executor_thread;
    j executor_job;
    c record;
    touched bigint;
    granted bigint[] := '{}';                             -- numbers of the offers that went the short way
    inserted text[];                                      -- jobs that nobody had heard of
BEGIN
    INSERT INTO executor_thread (thread_id) SELECT DISTINCT x FROM unnest(p_threads) AS x ORDER BY 1
        ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS touched = ROW_COUNT;
    IF touched < cardinality(p_threads) THEN              -- a row of our own is locked already
        PERFORM 1 FROM executor_thread x WHERE x.thread_id = ANY (p_threads) ORDER BY x.thread_id FOR UPDATE;
        GET DIAGNOSTICS touched = ROW_COUNT;
    END IF;
    -- No thread twice.
    IF touched = cardinality(p_threads) AND p_max_crashes > 0 THEN
        FOR o IN
            WITH i AS MATERIALIZED (
                SELECT u.*, h.checkpoint_id AS latest
                FROM unnest(p_jobs, p_threads, p_seqs, p_policies, p_requests, p_timeouts, p_nonces) WITH ORDINALITY
                        AS u (job_id, thread_id, seq, policy, request, timeout_ms, nonce, nr)
                    CROSS JOIN LATERAL (SELECT x.owner FROM executor_thread x WHERE x.thread_id = u.thread_id LIMIT 1) x
                    LEFT JOIN LATERAL (
                        SELECT k.checkpoint_id FROM checkpoints k
                        WHERE k.thread_id = u.thread_id AND k.checkpoint_ns = ''
                        ORDER BY k.checkpoint_id DESC LIMIT 1) h ON true
                    LEFT JOIN LATERAL (
                        SELECT true AS found FROM executor_job y
                        WHERE y.thread_id = u.thread_id AND y.state IN ('queued', 'running') LIMIT 1) y ON true
                    LEFT JOIN LATERAL (
                        SELECT true AS found FROM executor_cancel w WHERE w.job_id = u.job_id LIMIT 1) w ON true
                WHERE u.policy = 'enqueue' AND x.owner IS NULL AND y.found IS NULL AND w.found IS NULL
                ORDER BY u.job_id
            ), new AS (
                INSERT INTO executor_job (job_id, thread_id, stream_seq, state, policy, request, deadline_at, attempt,
                                          decided, head_at_claim, base_head)
                SELECT i.job_id, i.thread_id, i.seq, 'running', i.policy, i.request,
                    clock_timestamp() + i.timeout_ms * interval '1 millisecond', 1, true, i.latest, i.latest
                FROM i
                ON CONFLICT DO NOTHING                    -- known: the long way
                RETURNING job_id, thread_id
            )
            UPDATE executor_thread x SET epoch = nextval('executor_epoch_seq'), owner = p_owner, nonce = i.nonce,
                    job_id = i.job_id, lease_until = clock_timestamp() + p_ttl_ms * interval '1 millisecond',
                    head = i.latest
                FROM new JOIN i USING (job_id, thread_id) WHERE x.thread_id = i.thread_id
                RETURNING i.nr, x.job_id, x.epoch, x.head, i.timeout_ms
        LOOP
            nr := o.nr;
            verdict := 'run';
            job_id := o.job_id;
            epoch := o.epoch;
            attempt := 1;
            head := o.head;
            request := '';                                -- whoever offered it has it in hand
            time_ms := greatest(0, o.timeout_ms);
            suspect := false;
            granted := granted || o.nr;
            RETURN NEXT;
        END LOOP;
        IF cardinality(granted) = cardinality(p_jobs) THEN
            RETURN;
        END IF;
    END IF;
    WITH new AS (
        INSERT INTO executor_job AS x (job_id, thread_id, stream_seq, state, policy, request, deadline_at, cancel)
        -- A job may come twice in a batch, by two messages.
        SELECT DISTINCT ON (i.job_id) i.job_id, i.thread_id, i.seq, 'queued', i.policy, i.request,
            clock_timestamp() + i.timeout_ms * interval '1 millisecond',
            (SELECT w.cancel FROM executor_cancel w WHERE w.job_id = i.job_id)
        FROM unnest(p_jobs, p_threads, p_seqs, p_policies, p_requests, p_timeouts) WITH ORDINALITY
            AS i (job_id, thread_id, seq, policy, request, timeout_ms, nr)
        WHERE i.nr <> ALL (granted)
        ORDER BY i.job_id, i.seq
        -- One that was recorded before it was published gets its place now.
        ON CONFLICT (job_id) DO UPDATE SET stream_seq = EXCLUDED.stream_seq WHERE x.stream_seq IS NULL
        RETURNING x.job_id, x.xmax = 0 AS inserted
    )
    SELECT coalesce(array_agg(new.job_id) FILTER (WHERE new.inserted), '{}') INTO inserted FROM new;
    FOR o IN
        SELECT i.* FROM unnest(p_jobs, p_threads, p_seqs, p_nonces, p_running, p_lanes) WITH ORDINALITY
            AS i (job_id, thread_id, seq, nonce, running, lane, nr)
        WHERE i.nr <> ALL (granted)
    LOOP
        SELECT * INTO j FROM executor_job x WHERE x.job_id = o.job_id;
        IF j.finished_at IS NOT NULL THEN
            RETURN QUERY SELECT o.nr::int, CASE WHEN j.published_at IS NULL THEN 'done_unpublished' ELSE 'done' END,
                j.job_id, NULL::bigint, j.attempt, NULL::text, NULL::bytea,
                (extract(epoch FROM clock_timestamp() - j.finished_at) * 1000)::bigint,  -- how long ago it ended
                NULL::text, false, j.result_event_id, j.result_subject, executor_inline(j.result);
            CONTINUE;
        END IF;
        SELECT * INTO t FROM executor_thread x WHERE x.thread_id = o.thread_id;
        -- The answer of this very call was lost: the grant stands.
        IF t.owner = p_owner AND t.nonce = o.nonce THEN
            UPDATE executor_thread x SET lease_until = clock_timestamp() + p_ttl_ms * interval '1 millisecond'
                WHERE x.thread_id = o.thread_id;
            RETURN QUERY SELECT o.nr::int,
                    CASE WHEN cardinality(x.charged) >= p_max_crashes AND x.cancel IS NULL THEN 'poison' ELSE 'run' END,
                    x.job_id, t.epoch, x.attempt, t.head, executor_inline(x.request), executor_time_left(x.deadline_at),
                    x.cancel::text, cardinality(x.charged) >= 2, NULL::text, NULL::text, NULL::bytea
                FROM executor_job x WHERE x.job_id = t.job_id;
            CONTINUE;
        END IF;
        -- What a new job wants of those before it is decided once, when its message comes. One without a place comes
        -- later, and one that is turned away holds nobody up.
        IF j.policy <> 'enqueue' AND NOT j.decided AND j.cancel IS NULL AND j.state = 'queued' THEN
            IF j.policy <> 'reject' THEN
                UPDATE executor_job x SET cancel = jsonb_build_object('kind', j.policy, 'by', j.job_id)
                    WHERE x.thread_id = j.thread_id AND x.job_id <> j.job_id AND x.cancel IS NULL
                      AND (x.state = 'running' OR x.state = 'queued' AND x.stream_seq < j.stream_seq);
            END IF;
            UPDATE executor_job x SET decided = true, cancel = CASE WHEN j.policy = 'reject' THEN (
                    SELECT jsonb_build_object('kind', 'reject', 'by', y.job_id) FROM executor_job y
                    WHERE y.thread_id = j.thread_id AND y.job_id <> j.job_id
                      AND coalesce(y.cancel ->> 'kind', '') <> 'reject'
                      AND (y.state = 'running' OR y.state = 'queued' AND y.stream_seq < j.stream_seq)
                    ORDER BY y.state = 'running' DESC, y.stream_seq LIMIT 1) END
                WHERE x.job_id = j.job_id RETURNING x.* INTO j;
        END IF;
        IF j.state = 'queued' AND j.cancel ->> 'kind' = 'reject' THEN
            RETURN QUERY SELECT o.nr::int, 'rejected', j.job_id, NULL::bigint, j.attempt, NULL::text, NULL::bytea,
                NULL::bigint, j.cancel::text, false, NULL::text, NULL::text, NULL::bytea;
            CONTINUE;
        END IF;
        -- The lease stands, or lapsed while its owner could not reach the database, and the owner asks.
        IF t.owner IS NOT NULL AND (t.lease_until > clock_timestamp() OR (t.owner = p_owner AND t.epoch = o.running)) THEN
            RETURN QUERY SELECT o.nr::int, CASE WHEN t.job_id = o.job_id THEN 'running_elsewhere' ELSE 'parked' END,
                t.job_id, NULL::bigint, j.attempt, NULL::text, NULL::bytea,
                greatest(0, ceil(extract(epoch FROM t.lease_until - clock_timestamp()) * 1000))::bigint,
                j.cancel::text, false, NULL::text, NULL::text, NULL::bytea;
            CONTINUE;
        END IF;
        SELECT * INTO c FROM executor_claim(o.thread_id, p_owner, o.nonce, p_ttl_ms, p_max_crashes, o.lane);
        IF NOT FOUND THEN
            -- The job was first offered under another thread and is still open there.
            RETURN QUERY SELECT o.nr::int, 'running_elsewhere', j.job_id, NULL::bigint, j.attempt, NULL::text,
                NULL::bytea, p_ttl_ms, NULL::text, false, NULL::text, NULL::text, NULL::bytea;
            CONTINUE;
        END IF;
        RETURN QUERY SELECT o.nr::int, c.verdict, c.job_id, c.epoch, c.attempt, c.head,
            -- Whoever offered it has it in hand.
            CASE WHEN c.job_id = o.job_id AND j.stream_seq = o.seq AND o.job_id = ANY (inserted) THEN ''::bytea
                ELSE c.request END, c.time_ms,
            c.cancel, c.suspect, NULL::text, NULL::text, NULL::bytea;
    END LOOP;
END $$;

-- Claims a thread without a message: its owner has died, or nobody holds the messages of its jobs.
CREATE FUNCTION executor_adopt(
    p_thread text, p_owner text, p_nonce text, p_ttl_ms bigint, p_max_crashes int, p_lane boolean)
RETURNS TABLE (verdict text, job_id text, epoch bigint, attempt int, head text, request bytea, time_ms bigint,
               cancel text, suspect boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    t executor_thread;
BEGIN
    SELECT * INTO t FROM executor_thread x WHERE x.thread_id = p_thread FOR UPDATE;
    IF t.owner = p_owner AND t.nonce = p_nonce THEN          -- the answer of this very call was lost
        RETURN QUERY SELECT CASE WHEN cardinality(x.charged) >= p_max_crashes AND x.cancel IS NULL THEN 'poison' ELSE 'run' END,
                x.job_id, t.epoch, x.attempt, t.head, executor_inline(x.request), executor_time_left(x.deadline_at), x.cancel::text,
                cardinality(x.charged) >= 2
            FROM executor_job x WHERE x.job_id = t.job_id;
        RETURN;
    END IF;
    IF t.owner IS NOT NULL AND t.lease_until > clock_timestamp() THEN
        RETURN;
    END IF;
    RETURN QUERY SELECT * FROM executor_claim(p_thread, p_owner, p_nonce, p_ttl_ms, p_max_crashes, p_lane);
END $$;

-- Takes back what a job did: its checkpoints in every namespace, their writes and values. The caller holds the
-- thread's row. Not for a job that went on from questions of others: its writes stand among theirs.
CREATE FUNCTION executor_undo(p_thread text, p_job text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM checkpoint_writes w USING checkpoints c
        WHERE c.thread_id = p_thread AND c.metadata ->> 'job_id' = p_job AND w.thread_id = c.thread_id
          AND w.checkpoint_ns = c.checkpoint_ns AND w.checkpoint_id = c.checkpoint_id;
    DELETE FROM checkpoints WHERE thread_id = p_thread AND metadata ->> 'job_id' = p_job;
    DELETE FROM checkpoint_blobs b WHERE b.thread_id = p_thread AND NOT EXISTS (
        SELECT 1 FROM checkpoints c WHERE c.thread_id = b.thread_id AND c.checkpoint_ns = b.checkpoint_ns
            AND c.checkpoint -> 'channel_versions' ->> b.channel = b.version);
    UPDATE executor_thread SET head = (SELECT base_head FROM executor_job WHERE job_id = p_job)
        WHERE thread_id = p_thread;
END $$;

-- The group commit: many threads, each under its own fence, and the ends of jobs with their last checkpoint.
--   fences      p_: thread, epoch, head before, head after (NULL = does not move), job that ends (NULL = none)
--   values      b_: thread, namespace, channel, version, type, blob
--   writes      w_: thread, namespace, checkpoint, task, idx, channel, type, blob, task path
--   checkpoints c_: thread, namespace, id, parent, checkpoint, metadata
--   ends        f_: thread, epoch, job, state, event id, subject, event, body, error, take the next job, undo
-- One answer per fence: whether it held (or all of it had landed before), and the next job when one was handed over.
CREATE FUNCTION executor_commit(
    p_owner text, p_ttl_ms bigint,
    p_threads text[], p_epochs bigint[], p_from text[], p_to text[], p_jobs text[],
    b_threads text[], b_ns text[], b_channels text[], b_versions text[], b_types text[], b_blobs bytea[],
    w_threads text[], w_ns text[], w_checkpoints text[], w_tasks text[], w_idx int[], w_channels text[],
    w_types text[], w_blobs bytea[], w_paths text[],
    c_threads text[], c_ns text[], c_ids text[], c_parents text[], c_checkpoints text[], c_metadata text[],
    f_threads text[], f_epochs bigint[], f_jobs text[], f_states text[], f_event_ids text[], f_subjects text[],
    f_events bytea[], f_bodies bytea[], f_errors text[], f_take boolean[], f_undo boolean[])
RETURNS TABLE (thread_id text, ok boolean, job_id text, epoch bigint, attempt int, head text, request bytea,
               time_ms bigint, cancel text, suspect boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    held text[];
    all_held boolean;
    handed_over boolean := false;
    r record;
BEGIN
    -- The fence, twice: for one thread at a fraction of the cost, and for many. A head that already is where it should
    -- go marks the repetition of a commit that had landed.
    IF cardinality(p_threads) = 1 THEN
        UPDATE executor_thread t SET head = coalesce(p_to[1], t.head),
                lease_until = clock_timestamp() + p_ttl_ms * interval '1 millisecond'
            WHERE t.thread_id = p_threads[1] AND t.epoch = p_epochs[1] AND t.owner = p_owner
              AND (p_jobs[1] IS NULL OR t.job_id = p_jobs[1])
              AND (p_to[1] IS NULL OR t.head = p_to[1]
                   OR (t.head IS NOT DISTINCT FROM p_from[1]
                       AND (p_from[1] IS NULL OR p_to[1] COLLATE "C" > p_from[1] COLLATE "C")));
        held := CASE WHEN FOUND THEN p_threads ELSE '{}' END;
    ELSE
        -- Rows in key order, or two batches could deadlock.
        WITH i AS MATERIALIZED (
            SELECT * FROM unnest(p_threads, p_epochs, p_from, p_to, p_jobs) AS i (thread_id, epoch, parent, id, job_id)
        ), locked AS MATERIALIZED (
            SELECT t.thread_id, i.id FROM executor_thread t JOIN i USING (thread_id)
            WHERE t.epoch = i.epoch AND t.owner = p_owner AND (i.job_id IS NULL OR t.job_id = i.job_id)
              AND (i.id IS NULL OR t.head = i.id
                   OR (t.head IS NOT DISTINCT FROM i.parent
                       AND (i.parent IS NULL OR i.id COLLATE "C" > i.parent COLLATE "C")))
            ORDER BY t.thread_id FOR NO KEY UPDATE OF t
        ), f AS (
            UPDATE executor_thread t SET head = coalesce(l.id, t.head),
                lease_until = clock_timestamp() + p_ttl_ms * interval '1 millisecond'
            FROM locked l WHERE t.thread_id = l.thread_id RETURNING t.thread_id
        )
        SELECT coalesce(array_agg(f.thread_id), '{}') INTO held FROM f;
    END IF;
    all_held := cardinality(held) = cardinality(p_threads);

    -- One statement per table that has rows: each costs more than a few rows do.
    IF cardinality(b_threads) > 0 THEN
        INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
        SELECT u.* FROM unnest(b_threads, b_ns, b_channels, b_versions, b_types, b_blobs)
            AS u (thread_id, ns, channel, version, type, blob)
        WHERE all_held OR u.thread_id = ANY (held)
        ON CONFLICT DO NOTHING;
    END IF;
    IF cardinality(w_threads) > 0 THEN
        -- Ordinary writes are immutable.
        INSERT INTO checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path)
        SELECT u.* FROM unnest(w_threads, w_ns, w_checkpoints, w_tasks, w_idx, w_channels, w_types, w_blobs, w_paths)
            AS u (thread_id, ns, checkpoint_id, task_id, idx, channel, type, blob, task_path)
        WHERE u.idx >= 0 AND (all_held OR u.thread_id = ANY (held))
        ON CONFLICT DO NOTHING;
    END IF;
    IF 0 > ANY (w_idx) THEN
        -- LangGraph's special ones (errors, questions, answers) are replaced, the last one of a batch winning.
        INSERT INTO checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path)
        SELECT DISTINCT ON (u.thread_id, u.ns, u.checkpoint_id, u.task_id, u.idx)
            u.thread_id, u.ns, u.checkpoint_id, u.task_id, u.idx, u.channel, u.type, u.blob, u.task_path
        FROM unnest(w_threads, w_ns, w_checkpoints, w_tasks, w_idx, w_channels, w_types, w_blobs, w_paths)
            WITH ORDINALITY AS u (thread_id, ns, checkpoint_id, task_id, idx, channel, type, blob, task_path, nr)
        WHERE u.idx < 0 AND (all_held OR u.thread_id = ANY (held))
        ORDER BY u.thread_id, u.ns, u.checkpoint_id, u.task_id, u.idx, u.nr DESC
        ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
            DO UPDATE SET channel = EXCLUDED.channel, type = EXCLUDED.type, blob = EXCLUDED.blob;
    END IF;
    IF cardinality(c_threads) > 0 THEN
        INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
        SELECT u.thread_id, u.ns, u.id, u.parent, u.checkpoint::jsonb, u.metadata::jsonb
        FROM unnest(c_threads, c_ns, c_ids, c_parents, c_checkpoints, c_metadata)
            AS u (thread_id, ns, id, parent, checkpoint, metadata)
        WHERE all_held OR u.thread_id = ANY (held)
        ON CONFLICT DO NOTHING;
    END IF;

    IF cardinality(f_threads) > 0 AND cardinality(held) > 0 THEN
        UPDATE executor_job x SET state = e.state, finished_at = clock_timestamp(), finished_epoch = e.epoch,
                result_event_id = e.event_id, result_subject = e.subject, result = e.event, result_body = e.body,
                error = e.error::jsonb
            FROM unnest(f_threads, f_epochs, f_jobs, f_states, f_event_ids, f_subjects, f_events, f_bodies, f_errors)
                AS e (thread_id, epoch, job_id, state, event_id, subject, event, body, error)
            WHERE x.job_id = e.job_id AND (all_held OR e.thread_id = ANY (held));
        IF true = ANY (f_undo) THEN
            FOR r IN
                SELECT e.thread_id, e.job_id FROM unnest(f_threads, f_jobs, f_undo) AS e (thread_id, job_id, undo)
                WHERE e.undo AND e.thread_id = ANY (held)
            LOOP
                PERFORM executor_undo(r.thread_id, r.job_id);
            END LOOP;
        END IF;
        -- A statement of its own, so that it sees jobs that were queued while the rows were waited for.
        FOR r IN
            SELECT e.thread_id, n.job_id, e.epoch AS ended
            FROM unnest(f_threads, f_epochs, f_take) AS e (thread_id, epoch, take)
                CROSS JOIN LATERAL (
                    SELECT x.job_id FROM executor_job x
                    WHERE x.thread_id = e.thread_id AND x.state = 'queued' AND executor_ready(x.stream_seq, x.accepted_at)
                    ORDER BY x.stream_seq, x.accepted_at LIMIT 1) n
            WHERE e.take AND (all_held OR e.thread_id = ANY (held))
        LOOP
            UPDATE executor_thread x SET epoch = nextval('executor_epoch_seq'), nonce = 'finish:' || r.ended,
                    job_id = r.job_id
                WHERE x.thread_id = r.thread_id RETURNING x.head INTO head;
            UPDATE executor_job x SET state = 'running', attempt = x.attempt + 1, decided = true, head_at_claim = head,
                    base_head = head
                WHERE x.job_id = r.job_id;
            handed_over := true;
        END LOOP;
        UPDATE executor_thread x SET owner = NULL, nonce = NULL, job_id = NULL, lease_until = '-infinity'
            FROM unnest(f_threads, f_epochs) AS e (thread_id, epoch)
            WHERE x.thread_id = e.thread_id AND x.epoch = e.epoch AND (all_held OR e.thread_id = ANY (held));
    END IF;

    IF cardinality(f_threads) = 0 OR (all_held AND NOT handed_over) THEN
        head := NULL;
        suspect := false;
        FOREACH thread_id IN ARRAY p_threads LOOP
            ok := all_held OR thread_id = ANY (held);
            RETURN NEXT;
        END LOOP;
        RETURN;
    END IF;
    RETURN QUERY
        SELECT i.thread_id, i.thread_id = ANY (held) OR j.job_id IS NOT NULL,
            n.job_id, t.epoch, n.attempt, t.head, executor_inline(n.request), executor_time_left(n.deadline_at),
            n.cancel::text, false
        FROM unnest(p_threads, p_epochs, p_jobs) AS i (thread_id, epoch, job_id)
            LEFT JOIN executor_job j ON j.job_id = i.job_id AND j.finished_epoch = i.epoch
            LEFT JOIN executor_thread t ON j.job_id IS NOT NULL AND t.thread_id = i.thread_id AND t.owner = p_owner
                AND t.nonce = 'finish:' || i.epoch
            LEFT JOIN executor_job n ON n.job_id = t.job_id;
END $$;

-- Ends a job that never ran: cancelled, refused, or too late. False when it is no longer queued.
CREATE FUNCTION executor_end(
    p_job text, p_state text, p_event_id text, p_subject text, p_event bytea, p_body bytea, p_error text)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM executor_thread x
        WHERE x.thread_id = (SELECT j.thread_id FROM executor_job j WHERE j.job_id = p_job) FOR UPDATE;
    UPDATE executor_job x SET state = p_state, finished_at = clock_timestamp(), result_event_id = p_event_id,
            result_subject = p_subject, result = p_event, result_body = p_body, error = p_error::jsonb
        WHERE x.job_id = p_job AND x.state = 'queued';
    RETURN FOUND;
END $$;

-- Renews the leases that still stand, and says whose jobs are to be cancelled.
CREATE FUNCTION executor_heartbeat(p_threads text[], p_epochs bigint[], p_owner text, p_ttl_ms bigint)
RETURNS TABLE (thread_id text, epoch bigint, cancel text) LANGUAGE sql AS $$
    WITH i AS MATERIALIZED (
        SELECT * FROM unnest(p_threads, p_epochs) AS i (thread_id, epoch)
    ), l AS MATERIALIZED (
        SELECT t.thread_id FROM executor_thread t JOIN i USING (thread_id)
        WHERE t.epoch = i.epoch AND t.owner = p_owner ORDER BY t.thread_id FOR NO KEY UPDATE OF t
    ), u AS (
        UPDATE executor_thread t SET lease_until = clock_timestamp() + p_ttl_ms * interval '1 millisecond'
        FROM l WHERE t.thread_id = l.thread_id RETURNING t.thread_id, t.epoch, t.job_id
    )
    SELECT u.thread_id, u.epoch, j.cancel::text FROM u LEFT JOIN executor_job j USING (job_id) $$;

-- Records a job without claiming anything. False when it is known.
CREATE FUNCTION executor_record(
    p_job text, p_thread text, p_seq bigint, p_policy text, p_request bytea, p_timeout_ms bigint)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO executor_thread (thread_id) VALUES (p_thread) ON CONFLICT DO NOTHING;
    INSERT INTO executor_job (job_id, thread_id, stream_seq, state, policy, request, deadline_at, cancel)
        VALUES (p_job, p_thread, p_seq, 'queued', p_policy, p_request,
                clock_timestamp() + p_timeout_ms * interval '1 millisecond',
                (SELECT w.cancel FROM executor_cancel w WHERE w.job_id = p_job))
        ON CONFLICT (job_id) DO NOTHING;
    RETURN FOUND;
END $$;

-- Notes a wish to cancel a job, or the open jobs of a thread. A job wins over a thread of the same name. One row
-- per job; one without a job says that the wish waits for a job of that name.
CREATE FUNCTION executor_wish(p_target text, p_kind text, p_cancel jsonb)
RETURNS TABLE (job_id text, thread_id text, state text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF p_kind <> 'thread' THEN
        UPDATE executor_job x SET cancel = p_cancel
            WHERE x.job_id = p_target AND x.state IN ('queued', 'running') AND x.cancel IS NULL;
        RETURN QUERY SELECT x.job_id, x.thread_id, x.state FROM executor_job x WHERE x.job_id = p_target;
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;
    IF p_kind <> 'job' THEN
        PERFORM 1 FROM executor_thread x WHERE x.thread_id = p_target FOR UPDATE;
        RETURN QUERY UPDATE executor_job x SET cancel = coalesce(x.cancel, p_cancel)
            WHERE x.thread_id = p_target AND x.state IN ('queued', 'running')
            RETURNING x.job_id, x.thread_id, x.state;
        IF FOUND OR EXISTS (SELECT 1 FROM executor_thread x WHERE x.thread_id = p_target) THEN
            RETURN;
        END IF;
    END IF;
    IF p_kind <> 'thread' THEN
        INSERT INTO executor_cancel (job_id, cancel) VALUES (p_target, p_cancel) ON CONFLICT DO NOTHING;
        RETURN QUERY SELECT NULL::text, NULL::text, NULL::text;
    END IF;
END $$;

-- What needs somebody: threads whose owner has died, or whose jobs nobody has taken up for a while. One process
-- asks at a time; the others get nothing.
-- Without p_lane, the process asking has no place for a job that is suspected to kill its owners.
CREATE FUNCTION executor_orphans(p_limit int, p_queued boolean, p_lane boolean) RETURNS TABLE (thread_id text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('agent-executor sweep ' || current_schema(), 0)) THEN
        RETURN;
    END IF;
    RETURN QUERY SELECT j.thread_id FROM executor_job j JOIN executor_thread t USING (thread_id)
        WHERE j.state = 'running' AND (t.owner IS NULL OR t.lease_until < clock_timestamp())
          AND (p_lane OR j.cancel IS NOT NULL OR cardinality(j.charged) + (t.owner IS NOT NULL)::int < 2)
        ORDER BY t.lease_until LIMIT p_limit;
    IF p_queued THEN
        -- Beyond the time in which a message that is held or under way would have made itself heard.
        RETURN QUERY SELECT DISTINCT j.thread_id FROM executor_job j JOIN executor_thread t USING (thread_id)
            WHERE j.state = 'queued' AND j.accepted_at < clock_timestamp() - interval '10 seconds'
              AND (t.owner IS NULL OR t.lease_until < clock_timestamp())
              AND NOT EXISTS (SELECT 1 FROM executor_job r WHERE r.thread_id = j.thread_id AND r.state = 'running')
            LIMIT p_limit;
    END IF;
END $$;

-- Queued jobs that are not to run any more: cancelled, or past their deadline. Wishes that came before their job
-- are joined with it first.
CREATE FUNCTION executor_doomed(p_limit int)
RETURNS TABLE (job_id text, thread_id text, request bytea, cancel text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    UPDATE executor_job x SET cancel = w.cancel
        FROM (SELECT v.job_id, v.cancel FROM executor_cancel v JOIN executor_job y USING (job_id)
              WHERE y.state IN ('queued', 'running') AND y.cancel IS NULL
              ORDER BY v.job_id FOR NO KEY UPDATE OF y) w
        WHERE x.job_id = w.job_id;
    RETURN QUERY SELECT x.job_id, x.thread_id, x.request, x.cancel::text FROM executor_job x
        WHERE x.state = 'queued' AND (x.cancel IS NOT NULL OR x.deadline_at < clock_timestamp()) LIMIT p_limit;
END $$;

-- Notes that results were published.
CREATE FUNCTION executor_published(p_jobs text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE executor_job SET published_at = clock_timestamp() WHERE job_id = ANY (p_jobs) AND published_at IS NULL;
END $$;

-- A lock is held for milliseconds, unless somebody's session hangs. Whoever meets such a lock gives up well before
-- a lease ends and tries again without its neighbours; poolers know no setting that would say so.
-- The functions every job goes through read a handful of rows by key, in whatever state the statistics are: they are
-- planned once per connection, and only ways over an index are considered. A plan made while the tables were small would
-- otherwise read all of a large one, and a plan made for the values of one call takes longer than the call.
ALTER FUNCTION executor_accept SET lock_timeout = '2s' SET plan_cache_mode = 'force_generic_plan' SET enable_seqscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off;
ALTER FUNCTION executor_adopt SET lock_timeout = '2s' SET plan_cache_mode = 'force_generic_plan' SET enable_seqscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off;
ALTER FUNCTION executor_commit SET lock_timeout = '2s' SET plan_cache_mode = 'force_generic_plan' SET enable_seqscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off;
ALTER FUNCTION executor_published SET lock_timeout = '2s' SET plan_cache_mode = 'force_generic_plan' SET enable_seqscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off;
ALTER FUNCTION executor_end SET lock_timeout = '2s';
ALTER FUNCTION executor_heartbeat SET lock_timeout = '2s';
-- Called from a commit, over a whole thread: nothing to hurry.
ALTER FUNCTION executor_undo SET plan_cache_mode = 'auto' SET enable_seqscan = on SET enable_hashjoin = on
    SET enable_mergejoin = on;
