-- Attempts that did not count: broken by the infrastructure, unfinished, superseded, too late.
-- Grain: one row per (run, epoch, mode, state, message). Inputs: attempts.
-- Parameters: p_run, p_epoch (default: all).
-- `then_counted`: how many of these rollouts have another attempt that does count.
WITH kept AS (
    SELECT DISTINCT rollout_id FROM attempts WHERE state = 'counts'
)
SELECT
    run,
    epoch,
    mode,
    state,
    regexp_replace(left(coalesce(error, ''), 200), '[0-9]+(\.[0-9]+)?', '#', 'g') AS message,
    count(*) AS attempts,
    count(DISTINCT rollout_id) AS rollouts,
    count(DISTINCT kept.rollout_id) AS then_counted,
    sum(seconds) AS seconds_lost,
    min(attempts.rollout_id) AS example
FROM attempts
LEFT JOIN kept USING (rollout_id)
WHERE state <> 'counts' AND (p_run IS NULL OR run = p_run) AND (p_epoch IS NULL OR epoch = p_epoch)
GROUP BY ALL
ORDER BY run, epoch, mode, attempts DESC, message
