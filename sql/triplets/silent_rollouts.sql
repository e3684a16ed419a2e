-- Rollouts that ended without any call that a policy of the settings sampled: there is nothing to train on.
-- Grain: one row per such rollout; `calls` counts its calls to other models.
-- Inputs: rollout_rewards, judged_calls, policies, bucket.
WITH counted AS (
    SELECT calls.attempt, count(*) AS calls, count(policies.policy) AS trained
    FROM judged_calls AS calls
    LEFT JOIN policies USING (policy)
    GROUP BY calls.attempt
)
SELECT rewards.rollout_id, rewards.attempt_id, rewards.outcome, coalesce(counted.calls, 0) AS calls
FROM rollout_rewards AS rewards
JOIN bucket USING (rollout_id, attempt_id)
LEFT JOIN counted USING (attempt)
WHERE coalesce(counted.trained, 0) = 0
ORDER BY rewards.rollout_id
