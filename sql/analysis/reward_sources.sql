-- Who gives rewards, under which names, how much; and why some do not count.
-- Grain: one row per (epoch, mode, source, agent, reward_name, left_out) of a run. Inputs: rewards_given, attempts.
-- Parameters: p_run (default: the newest run), p_epoch (default: all).
-- `source`: emitted (by the agent), grader, air (a rule), failure (of the attempt). `counted` rewards are part of a rollout's
-- reward; for the others `left_out` has the reason, or they were not the last of their name.
WITH chosen AS (
    SELECT run FROM attempts WHERE p_run IS NULL OR run = p_run ORDER BY started DESC LIMIT 1
)
SELECT
    given.run,
    given.epoch,
    attempts.mode,
    given.source,
    given.agent,
    given.reward_name,
    given.left_out,
    count(*) AS rewards,
    count(DISTINCT given.rollout_id) AS rollouts,
    count(*) FILTER (given.counts) AS counted,
    avg(given.reward) FILTER (isfinite(given.reward)) AS mean,
    min(given.reward) FILTER (isfinite(given.reward)) AS lowest,
    max(given.reward) FILTER (isfinite(given.reward)) AS highest,
    any_value(given.weight) AS weight
FROM rewards_given AS given
JOIN chosen USING (run)
JOIN attempts ON attempts.rollout_id = given.rollout_id AND attempts.attempt_id = given.attempt_id
WHERE p_epoch IS NULL OR given.epoch = p_epoch
GROUP BY ALL
ORDER BY ALL
