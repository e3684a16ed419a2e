-- Rollouts ended before their first call: the agent never began, and its score says nothing of the policy.
-- Grain: one row per (epoch, mode). Parameters: run. Inputs: rollouts.
-- Remedy: Run the agent once with `lightning-flows doctor`; its output and error are in the attempt's folder and in view errors.
-- Evidence: SELECT epoch, mode, rollout_id, attempt_id, outcome, error, seconds FROM rollouts WHERE run = $run AND state = 'counts' AND calls = 0
WITH limits AS (
    SELECT 0.05 AS many, 0.5 AS most
),
counted AS (
    SELECT
        epoch,
        mode,
        count(*) AS rollouts,
        count(*) FILTER (calls = 0) AS silent,
        count(*) FILTER (calls = 0 AND outcome = 'ok') AS ok,
        mode(error) FILTER (calls = 0) AS error
    FROM rollouts
    WHERE run = $run AND state = 'counts'
    GROUP BY ALL
)
SELECT
    epoch,
    mode,
    NULL::VARCHAR AS policy,
    CASE WHEN silent > most * rollouts THEN 'error' WHEN silent > many * rollouts THEN 'warning' ELSE 'note' END AS severity,
    format(
        '{} of {} rollouts made no call ({} of them "ok"){}',
        silent, rollouts, ok, CASE WHEN error IS NULL THEN '' ELSE ': ' || left(error, 200) END
    ) AS what
FROM counted
CROSS JOIN limits
WHERE silent > 0
