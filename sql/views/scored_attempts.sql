-- The attempts of derived epochs that ended, and which of them counts; view `attempts` also has running ones, and more columns.
-- Grain: one row per (run, epoch, mode, rollout_id, attempt_id). Inputs: stored.scored_attempts.
SELECT * EXCLUDE (start_ns, end_ns), make_timestamp_ns(start_ns) AS started, make_timestamp_ns(end_ns) AS ended
FROM stored.scored_attempts
