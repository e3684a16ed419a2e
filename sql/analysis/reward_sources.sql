-- Who gives rewards: the grader or an agent, under which names, how much.
-- Grain: one row per (run, epoch, mode, source, agent, reward_name). Inputs: rewards, attempts.
-- Only attempts that count. `no_value`: the grader failed, or the reward is no finite number.
WITH chosen AS (
    SELECT run FROM attempts ORDER BY started DESC LIMIT 1
)
SELECT
    rewards.run,
    rewards.epoch,
    rewards.mode,
    rewards.source,
    rewards.agent,
    rewards.reward_name,
    count(*) AS rewards,
    count(DISTINCT rewards.rollout_id) AS rollouts,
    avg(rewards.reward) FILTER (isfinite(rewards.reward)) AS mean,
    min(rewards.reward) FILTER (isfinite(rewards.reward)) AS lowest,
    max(rewards.reward) FILTER (isfinite(rewards.reward)) AS highest,
    count(*) FILTER (rewards.reward IS NULL OR NOT isfinite(rewards.reward)) AS no_value
FROM rewards
JOIN chosen USING (run)
JOIN attempts USING (rollout_id, attempt_id)
WHERE attempts.state = 'counts'
GROUP BY ALL
ORDER BY ALL
