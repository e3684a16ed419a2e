-- What went wrong: failed attempts, failed calls, failed tools.
-- Grain: one row per span with an error. Inputs: spans
SELECT
    rollout_id,
    attempt_id,
    op,
    name,
    coalesce(outcome, status) AS outcome,
    coalesce(error, status_message) AS message,
    make_timestamp_ns(start_ns) AS started
FROM spans
WHERE status = 'error' OR (op = 'rollout' AND outcome <> 'ok') OR (op = 'reward' AND error IS NOT NULL)
