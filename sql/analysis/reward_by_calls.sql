-- Whether more calls in a rollout go with more reward.
-- Grain: one row per (epoch, mode, number of calls) of a run; ten and more are one row. Inputs: rollouts, attempts.
-- Parameters: p_run (default: the newest run), p_epoch (default: all).
-- `success`: the share that reached success_reward.
WITH chosen AS (
    SELECT run FROM attempts WHERE p_run IS NULL OR run = p_run ORDER BY started DESC LIMIT 1
)
SELECT
    run,
    epoch,
    mode,
    CASE WHEN calls >= 10 THEN '10+' ELSE calls::VARCHAR END AS calls,
    count(*) AS rollouts,
    avg(reward) AS mean_reward,
    avg(success::INTEGER) AS success,
    count(*) FILTER (outcome <> 'ok') AS failed,
    avg(seconds) AS mean_seconds
FROM rollouts
JOIN chosen USING (run)
WHERE state = 'counts' AND (p_epoch IS NULL OR epoch = p_epoch)
GROUP BY run, epoch, mode, CASE WHEN calls >= 10 THEN '10+' ELSE calls::VARCHAR END
ORDER BY epoch, mode, min(rollouts.calls)
