-- Whether rollouts that used a tool did better than those that did not.
-- Grain: one row per (epoch, tool_name) of a run's training. Inputs: tool_calls, rollouts, attempts.
-- Parameters: p_run (default: the newest run that trains), p_epoch (default: all).
-- A rollout counts as `with` a tool from its first call of it, failed or not.
WITH chosen AS (
    SELECT run
    FROM attempts
    WHERE mode = 'train' AND (p_run IS NULL OR run = p_run)
    ORDER BY started DESC
    LIMIT 1
),
counted AS (
    SELECT rollouts.run, rollouts.epoch, rollouts.rollout_id, rollouts.attempt_id, rollouts.reward
    FROM rollouts
    JOIN chosen USING (run)
    WHERE rollouts.mode = 'train' AND rollouts.state = 'counts' AND (p_epoch IS NULL OR rollouts.epoch = p_epoch)
),
used AS (
    SELECT rollout_id, attempt_id, tool_name, count(*) AS uses, count(*) FILTER (failed) AS failed
    FROM tool_calls
    GROUP BY ALL
),
present AS (
    SELECT DISTINCT counted.epoch, used.tool_name FROM counted JOIN used USING (rollout_id, attempt_id)
)
SELECT
    counted.run,
    counted.epoch,
    present.tool_name,
    count(*) FILTER (used.uses > 0) AS rollouts_with,
    avg(counted.reward) FILTER (used.uses > 0) AS mean_reward_with,
    avg(counted.reward) FILTER (used.failed > 0) AS mean_reward_where_it_failed,
    count(*) FILTER (used.uses IS NULL) AS rollouts_without,
    avg(counted.reward) FILTER (used.uses IS NULL) AS mean_reward_without,
    avg(used.uses) AS uses_where_used
FROM counted
JOIN present USING (epoch)
LEFT JOIN used
    ON used.rollout_id = counted.rollout_id AND used.attempt_id = counted.attempt_id AND used.tool_name = present.tool_name
GROUP BY counted.run, counted.epoch, present.tool_name
ORDER BY counted.epoch, present.tool_name
