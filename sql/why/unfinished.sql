-- Many planned rollouts have no result.
-- Grain: one row per (epoch, mode). Parameters: run. Inputs: epochs.
-- Rule: only epochs whose rollouts are over. The infrastructure failed these rollouts on every try, so they do not count, and the rest may be the easy
-- ones.
-- Remedy: Read what broke (question error_messages); fewer at a time (`rollout.concurrency`), more tries (`rollout.retries`) or more time (`agent.timeout_s`) help against load.
-- Evidence: SELECT epoch, mode, state, outcome, error, count(*) AS attempts FROM attempts WHERE run = $run GROUP BY ALL ORDER BY ALL
WITH limits AS (
    SELECT 0.1 AS many, 0.5 AS most
)
SELECT
    epoch,
    mode,
    NULL::VARCHAR AS policy,
    CASE WHEN unfinished > most * (rollouts + unfinished) THEN 'error' WHEN unfinished > many * (rollouts + unfinished) THEN 'warning' ELSE 'note' END AS severity,
    format('{} of {} planned rollouts have no result', unfinished, rollouts + unfinished) AS what
FROM epochs
CROSS JOIN limits
WHERE run = $run AND sealed AND unfinished > 0
