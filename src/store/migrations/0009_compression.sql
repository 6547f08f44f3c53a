-- Rows of more than two kilobytes are compressed. LZ4 takes a fraction of the time; servers built without it go on as
-- they are. What is stored already stays as it is, and both are read alike. A table that somebody reads for hours, as a
-- backup does, is left alone too: whoever waited for it would hold up everybody else.
DO $$
DECLARE
    was text := current_setting('lock_timeout');
BEGIN
    PERFORM set_config('lock_timeout', '500ms', true);
    ALTER TABLE checkpoints ALTER COLUMN checkpoint SET COMPRESSION lz4, ALTER COLUMN metadata SET COMPRESSION lz4;
    ALTER TABLE checkpoint_blobs ALTER COLUMN blob SET COMPRESSION lz4;
    ALTER TABLE checkpoint_writes ALTER COLUMN blob SET COMPRESSION lz4;
    ALTER TABLE executor_job ALTER COLUMN request SET COMPRESSION lz4, ALTER COLUMN result SET COMPRESSION lz4,
        ALTER COLUMN result_body SET COMPRESSION lz4;
    PERFORM set_config('lock_timeout', was, true);
EXCEPTION WHEN feature_not_supported OR syntax_error OR insufficient_privilege OR lock_not_available
    OR deadlock_detected THEN NULL;
END $$;
