-- Jobs, the ownership of threads, the outbox of results and dead letters.
-- Every function is one round trip and works through a transaction pooler. Each locks the row of its thread
-- first and looks afterwards: a statement that looked first would decide on what another one is changing.

-- Fencing tokens; never reset.
CREATE SEQUENCE executor_epoch_seq;

CREATE TABLE executor_thread (
    thread_id   text PRIMARY KEY,
    epoch       bigint NOT NULL DEFAULT 0,                -- fencing token of the last claim
    owner       text,                                     -- "pod/boot uuid"; NULL = free
    nonce       text,                                     -- the call that made the claim, so that it can be repeated
    job_id      text,                                     -- job that runs under the lease
    lease_until timestamptz NOT NULL DEFAULT '-infinity',
    head        text                                      -- newest root checkpoint
) WITH (fillfactor = 60);                                 -- only the key is indexed, so a renewal stays on its page

CREATE TABLE executor_job (
    job_id        text PRIMARY KEY,
    thread_id     text NOT NULL,
    stream_seq    bigint NOT NULL,                        -- place in the stream: jobs of a thread start in this order
    state         text NOT NULL CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'dead')),
    policy        text NOT NULL DEFAULT 'enqueue',
    attempt       int NOT NULL DEFAULT 0,                 -- claims so far
    charged       bigint[] NOT NULL DEFAULT '{}',         -- epochs whose owner vanished without progress
    head_at_claim text,
    cancel        text,                                   -- NULL, 'interrupt', 'rollback' or 'cancel'
    request       bytea,
    accepted_at   timestamptz NOT NULL DEFAULT now(),
    deadline_at   timestamptz,
    finished_at   timestamptz,
    finished_epoch bigint,
    result_event_id text,
    result_subject text,
    result        bytea,                                  -- what is published
    result_body   bytea,                                  -- the full event, when "result" only refers to it
    error         jsonb,
    publish_started_at timestamptz,
    published_at  timestamptz
);
CREATE INDEX executor_job_open ON executor_job (thread_id, stream_seq) WHERE state IN ('queued', 'running');
CREATE UNIQUE INDEX executor_job_one_running ON executor_job (thread_id) WHERE state = 'running';
CREATE INDEX executor_job_unpub ON executor_job (finished_at) WHERE published_at IS NULL AND finished_at IS NOT NULL;

CREATE TABLE executor_dead_letter (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream       text NOT NULL,
    stream_seq   bigint NOT NULL,
    subject      text,
    headers      jsonb,                                   -- list of [name, value]
    payload      bytea,
    job_id       text,
    thread_id    text,
    reason       text NOT NULL,
    detail       jsonb,
    deliveries   bigint,
    created_at   timestamptz NOT NULL DEFAULT now(),
    replayed_at  timestamptz,
    replay_msg_id text,
    UNIQUE (stream, stream_seq)
);

-- Milliseconds until a deadline, 0 once it has passed.
CREATE FUNCTION executor_time_left(p_deadline timestamptz) RETURNS bigint LANGUAGE sql AS $$
    SELECT greatest(0, ceil(extract(epoch FROM p_deadline - clock_timestamp()) * 1000))::bigint $$;

-- Records the job if it is new, and claims its thread if it is free. The claimed job may be an older one.
CREATE FUNCTION executor_accept(
    p_job text, p_thread text, p_seq bigint, p_policy text, p_request bytea, p_timeout_ms bigint,
    p_owner text, p_nonce text, p_running bigint, p_ttl_ms bigint, p_max_crashes int, p_lane boolean)
RETURNS TABLE (verdict text, job_id text, epoch bigint, attempt int, head text, request bytea, time_ms bigint,
               event_id text, subject text, event bytea)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    t executor_thread;
    j executor_job;
    nxt executor_job;
    latest text;
    suspects bigint[];
    ttl interval := p_ttl_ms * interval '1 millisecond';
BEGIN
    INSERT INTO executor_thread (thread_id) VALUES (p_thread) ON CONFLICT DO NOTHING;
    SELECT * INTO t FROM executor_thread x WHERE x.thread_id = p_thread FOR UPDATE;
    INSERT INTO executor_job (job_id, thread_id, stream_seq, state, policy, request, deadline_at)
        VALUES (p_job, p_thread, p_seq, 'queued', p_policy, p_request,
                clock_timestamp() + p_timeout_ms * interval '1 millisecond')
        ON CONFLICT (job_id) DO NOTHING;
    SELECT * INTO j FROM executor_job x WHERE x.job_id = p_job;
    IF j.finished_at IS NOT NULL THEN
        RETURN QUERY SELECT CASE WHEN j.published_at IS NULL THEN 'done_unpublished' ELSE 'done' END,
            j.job_id, NULL::bigint, j.attempt, NULL::text, NULL::bytea,
            (extract(epoch FROM clock_timestamp() - j.finished_at) * 1000)::bigint,     -- how long ago it ended
            j.result_event_id, j.result_subject, j.result;
        RETURN;
    END IF;
    -- The answer of this very call was lost: the grant stands.
    IF t.owner = p_owner AND t.nonce = p_nonce THEN
        UPDATE executor_thread x SET lease_until = clock_timestamp() + ttl WHERE x.thread_id = p_thread;
        SELECT * INTO nxt FROM executor_job x WHERE x.job_id = t.job_id;
        RETURN QUERY SELECT CASE WHEN cardinality(nxt.charged) >= p_max_crashes THEN 'poison' ELSE 'run' END,
            nxt.job_id, t.epoch, nxt.attempt, t.head, nxt.request, executor_time_left(nxt.deadline_at),
            NULL::text, NULL::text, NULL::bytea;
        RETURN;
    END IF;
    -- The lease stands, or lapsed while its owner could not reach the database, and the owner asks.
    IF t.owner IS NOT NULL AND (t.lease_until > clock_timestamp() OR (t.owner = p_owner AND t.epoch = p_running)) THEN
        RETURN QUERY SELECT CASE WHEN t.job_id = p_job THEN 'running_elsewhere' ELSE 'parked' END,
            t.job_id, NULL::bigint, j.attempt, NULL::text, NULL::bytea,
            greatest(0, ceil(extract(epoch FROM t.lease_until - clock_timestamp()) * 1000))::bigint,
            NULL::text, NULL::text, NULL::bytea;
        RETURN;
    END IF;
    -- A started job first, then the order of the stream.
    SELECT * INTO nxt FROM executor_job x WHERE x.thread_id = p_thread AND x.state IN ('queued', 'running')
        ORDER BY x.state = 'running' DESC, x.stream_seq LIMIT 1;
    IF nxt.job_id IS NULL THEN
        -- The job was first offered under another thread and is still open there.
        RETURN QUERY SELECT 'running_elsewhere', j.job_id, NULL::bigint, j.attempt, NULL::text, NULL::bytea,
            p_ttl_ms, NULL::text, NULL::text, NULL::bytea;
        RETURN;
    END IF;
    SELECT c.checkpoint_id INTO latest FROM checkpoints c
        WHERE c.thread_id = p_thread AND c.checkpoint_ns = '' ORDER BY c.checkpoint_id DESC LIMIT 1;
    suspects := CASE
        WHEN nxt.attempt > 0 AND nxt.head_at_claim IS DISTINCT FROM latest THEN '{}'    -- progress clears suspicion
        WHEN nxt.state = 'running' AND t.owner IS NOT NULL AND NOT t.epoch = ANY (nxt.charged)
            THEN nxt.charged || t.epoch                                                 -- its owner vanished
        ELSE nxt.charged END;                                                           -- it was released
    IF cardinality(suspects) >= 2 AND NOT p_lane THEN
        RETURN QUERY SELECT 'need_lane', nxt.job_id, NULL::bigint, nxt.attempt, NULL::text, NULL::bytea,
            NULL::bigint, NULL::text, NULL::text, NULL::bytea;
        RETURN;
    END IF;
    UPDATE executor_job x SET state = 'running', attempt = x.attempt + 1, head_at_claim = latest, charged = suspects
        WHERE x.job_id = nxt.job_id RETURNING * INTO nxt;
    UPDATE executor_thread x SET epoch = nextval('executor_epoch_seq'), owner = p_owner, nonce = p_nonce,
            job_id = nxt.job_id, lease_until = clock_timestamp() + ttl, head = latest
        WHERE x.thread_id = p_thread RETURNING * INTO t;
    RETURN QUERY SELECT CASE WHEN cardinality(nxt.charged) >= p_max_crashes THEN 'poison' ELSE 'run' END,
        nxt.job_id, t.epoch, nxt.attempt, t.head, nxt.request, executor_time_left(nxt.deadline_at),
        NULL::text, NULL::text, NULL::bytea;
END $$;

-- Fence, terminal state, outbox, and the thread goes to its next job or is freed.
CREATE FUNCTION executor_finish(
    p_thread text, p_epoch bigint, p_owner text, p_job text, p_state text, p_event_id text, p_subject text,
    p_event bytea, p_body bytea, p_error jsonb, p_take_next boolean, p_ttl_ms bigint)
RETURNS TABLE (status text, job_id text, epoch bigint, attempt int, head text, request bytea, time_ms bigint)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    t executor_thread;
    j executor_job;
    nxt executor_job;
    chain text := 'finish:' || p_epoch;
BEGIN
    SELECT * INTO t FROM executor_thread x WHERE x.thread_id = p_thread FOR UPDATE;
    SELECT * INTO j FROM executor_job x WHERE x.job_id = p_job;
    IF j.finished_epoch = p_epoch THEN                       -- the answer of the same finish was lost
        IF t.owner = p_owner AND t.nonce = chain THEN
            RETURN QUERY SELECT 'already', x.job_id, t.epoch, x.attempt, t.head, x.request,
                    executor_time_left(x.deadline_at)
                FROM executor_job x WHERE x.job_id = t.job_id;
            RETURN;
        END IF;
        RETURN QUERY SELECT 'already', NULL::text, NULL::bigint, NULL::int, NULL::text, NULL::bytea, NULL::bigint;
        RETURN;
    END IF;
    IF t.epoch IS DISTINCT FROM p_epoch OR t.owner IS DISTINCT FROM p_owner OR t.job_id IS DISTINCT FROM p_job THEN
        RETURN QUERY SELECT 'fenced', NULL::text, NULL::bigint, NULL::int, NULL::text, NULL::bytea, NULL::bigint;
        RETURN;
    END IF;
    UPDATE executor_job x SET state = p_state, finished_at = clock_timestamp(), finished_epoch = p_epoch,
            result_event_id = p_event_id, result_subject = p_subject, result = p_event, result_body = p_body,
            error = p_error
        WHERE x.job_id = p_job;
    IF p_take_next THEN
        SELECT * INTO nxt FROM executor_job x WHERE x.thread_id = p_thread AND x.state = 'queued'
            ORDER BY x.stream_seq LIMIT 1;
    END IF;
    IF nxt.job_id IS NULL THEN
        UPDATE executor_thread x SET owner = NULL, nonce = NULL, job_id = NULL, lease_until = '-infinity'
            WHERE x.thread_id = p_thread;
        RETURN QUERY SELECT 'ok', NULL::text, NULL::bigint, NULL::int, NULL::text, NULL::bytea, NULL::bigint;
        RETURN;
    END IF;
    UPDATE executor_job x SET state = 'running', attempt = x.attempt + 1, head_at_claim = t.head
        WHERE x.job_id = nxt.job_id RETURNING * INTO nxt;
    UPDATE executor_thread x SET epoch = nextval('executor_epoch_seq'), nonce = chain, job_id = nxt.job_id,
            lease_until = clock_timestamp() + p_ttl_ms * interval '1 millisecond'
        WHERE x.thread_id = p_thread RETURNING * INTO t;
    RETURN QUERY SELECT 'ok', nxt.job_id, t.epoch, nxt.attempt, t.head, nxt.request,
        executor_time_left(nxt.deadline_at);
END $$;

-- The job stays 'running' and can be claimed at once; no owner, so nothing is charged.
-- False when the thread has a later epoch.
CREATE FUNCTION executor_release(p_thread text, p_epoch bigint, p_owner text) RETURNS boolean LANGUAGE sql AS $$
    WITH r AS (
        UPDATE executor_thread SET owner = NULL, nonce = NULL, lease_until = '-infinity'
        WHERE thread_id = p_thread AND epoch = p_epoch AND (owner = p_owner OR owner IS NULL) RETURNING 1)
    SELECT EXISTS (SELECT 1 FROM r) $$;

-- A worker that lost its claim but lives takes its epoch off the list of suspected crashes.
CREATE FUNCTION executor_refund(p_job text, p_epoch bigint) RETURNS void LANGUAGE sql AS $$
    UPDATE executor_job SET charged = array_remove(charged, p_epoch)
    WHERE job_id = p_job AND p_epoch = ANY (charged) $$;

-- Renews the leases that still stand. Rows are locked in key order, or two batches could deadlock.
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
    SELECT u.thread_id, u.epoch, j.cancel FROM u LEFT JOIN executor_job j USING (job_id) $$;
