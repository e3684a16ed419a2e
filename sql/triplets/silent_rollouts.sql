-- Rollouts that ended without one call that a policy of the settings sampled: there is nothing of them to train on.
-- Grain: one row per such rollout; `calls` counts its calls to other models.
-- Inputs: rollout_rewards, policy_calls, policies.
SELECT
    rewards.rollout_id,
    rewards.attempt_id,
    rewards.outcome,
    count(calls.call_id) AS calls
FROM rollout_rewards AS rewards
LEFT JOIN policy_calls AS calls USING (rollout_id, attempt_id)
GROUP BY rewards.rollout_id, rewards.attempt_id, rewards.outcome
HAVING count(*) FILTER (WHERE calls.policy IN (SELECT policy FROM policies)) = 0
ORDER BY rewards.rollout_id
