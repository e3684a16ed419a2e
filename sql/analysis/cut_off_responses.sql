-- How responses ended (cut off by the token limit, or by themselves), and the reward of their rollouts.
-- Grain: one row per (epoch, mode, agent, finish_reasons) of a run. Inputs: calls, rollouts, attempts.
-- Parameters: p_run (default: the newest run), p_epoch (default: all).
-- `share` is of the agent's calls in the epoch; `mean_reward` is over calls, each with the reward of its rollout.
WITH chosen AS (
    SELECT run FROM attempts WHERE p_run IS NULL OR run = p_run ORDER BY started DESC LIMIT 1
)
SELECT
    rollouts.run,
    rollouts.epoch,
    rollouts.mode,
    calls.agent,
    calls.finish_reasons,
    count(*) AS calls,
    count(*) / sum(count(*)) OVER (PARTITION BY rollouts.epoch, rollouts.mode, calls.agent) AS share,
    avg(calls.response_tokens) AS mean_tokens,
    avg(rollouts.reward) AS mean_reward
FROM calls
JOIN rollouts ON rollouts.rollout_id = calls.rollout_id AND rollouts.attempt_id = calls.attempt_id
JOIN chosen ON chosen.run = rollouts.run
WHERE calls.twin_of IS NULL AND (p_epoch IS NULL OR rollouts.epoch = p_epoch)
GROUP BY rollouts.run, rollouts.epoch, rollouts.mode, calls.agent, calls.finish_reasons
ORDER BY rollouts.epoch, rollouts.mode, calls.agent, calls DESC, calls.finish_reasons
