-- Rollouts that ended without one call that a policy of the settings sampled: there is nothing of them to train on.
-- Grain: one row per such rollout; `calls` counts its calls to other models.
-- Inputs: rollout_rewards, policy_calls, policies.
WITH counted AS (
    SELECT calls.rollout_id, calls.attempt_id, count(*) AS calls, count(policies.policy) AS trained
    FROM policy_calls AS calls
    LEFT JOIN policies USING (policy)
    GROUP BY calls.rollout_id, calls.attempt_id
)
SELECT rewards.rollout_id, rewards.attempt_id, rewards.outcome, coalesce(counted.calls, 0) AS calls
FROM rollout_rewards AS rewards
LEFT JOIN counted USING (rollout_id, attempt_id)
WHERE coalesce(counted.trained, 0) = 0
ORDER BY rewards.rollout_id
