-- What operators do with dead letters, repairs by hand, and the removal of what is old.

-- A letter is never removed by hand: it keeps what became of it.
ALTER TABLE executor_dead_letter
    ADD COLUMN replays       int NOT NULL DEFAULT 0,      -- how often it was sent again
    ADD COLUMN replay_job_id text,                        -- the job the last one runs as
    ADD COLUMN discarded_at  timestamptz;
CREATE INDEX executor_dead_letter_open ON executor_dead_letter (job_id)
    WHERE replayed_at IS NULL AND discarded_at IS NULL;

-- The place of a copy of the job's message, which keeps its own place in the order of the thread.
ALTER TABLE executor_job ADD COLUMN copy_seq bigint;

-- Only what is done for good is in it, so a job costs one entry at the end of the index, when it is marked.
CREATE INDEX executor_job_done ON executor_job (finished_at) WHERE published_at IS NOT NULL;

CREATE INDEX executor_effect_old ON executor_effect (updated_at) WHERE state <> 'unknown';

-- Frees threads whose owner has been silent since long before now, and charges their jobs for it as the next
-- claim would have done.
CREATE FUNCTION executor_free(p_grace_ms bigint, p_limit int) RETURNS TABLE (thread_id text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    t executor_thread;
BEGIN
    FOR t IN
        SELECT * FROM executor_thread x
        WHERE x.owner IS NOT NULL AND x.lease_until < clock_timestamp() - p_grace_ms * interval '1 millisecond'
        ORDER BY x.thread_id LIMIT p_limit FOR UPDATE SKIP LOCKED
    LOOP
        UPDATE executor_job x SET charged = x.charged || t.epoch
            WHERE x.job_id = t.job_id AND x.state = 'running' AND NOT t.epoch = ANY (x.charged);
        UPDATE executor_thread x SET owner = NULL, nonce = NULL, lease_until = '-infinity'
            WHERE x.thread_id = t.thread_id;
        RETURN QUERY SELECT t.thread_id;
    END LOOP;
END $$;

-- Removes one batch of what is older than its age (NULL: kept for ever). No row while another process removes.
CREATE FUNCTION executor_expire(p_jobs_ms bigint, p_letters_ms bigint, p_limit int)
RETURNS TABLE (jobs bigint, letters bigint, wishes bigint, effects bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('agent-executor retention ' || current_schema(), 0)) THEN
        RETURN;
    END IF;
    DELETE FROM executor_job x WHERE x.job_id = ANY (ARRAY(
        SELECT j.job_id FROM executor_job j
        WHERE j.published_at IS NOT NULL AND j.finished_at < clock_timestamp() - p_jobs_ms * interval '1 millisecond'
        ORDER BY j.finished_at LIMIT p_limit));
    GET DIAGNOSTICS jobs = ROW_COUNT;
    -- Numbers grow with time, so the oldest are found at the beginning of the key.
    DELETE FROM executor_dead_letter x WHERE x.id = ANY (ARRAY(
        SELECT l.id FROM (SELECT d.id, d.created_at FROM executor_dead_letter d ORDER BY d.id LIMIT p_limit) l
        WHERE l.created_at < clock_timestamp() - p_letters_ms * interval '1 millisecond'));
    GET DIAGNOSTICS letters = ROW_COUNT;
    DELETE FROM executor_cancel x WHERE x.job_id = ANY (ARRAY(
        SELECT w.job_id FROM executor_cancel w
        WHERE w.created_at < clock_timestamp() - p_jobs_ms * interval '1 millisecond' LIMIT p_limit));
    GET DIAGNOSTICS wishes = ROW_COUNT;
    -- One whose outcome is unknown waits for a person, however long.
    DELETE FROM executor_effect x WHERE x.ctid = ANY (ARRAY(
        SELECT e.ctid FROM executor_effect e
        WHERE e.state <> 'unknown' AND e.updated_at < clock_timestamp() - p_jobs_ms * interval '1 millisecond'
        ORDER BY e.updated_at LIMIT p_limit));
    GET DIAGNOSTICS effects = ROW_COUNT;
    RETURN NEXT;
END $$;
