-- Rewards that cannot be used: no finite number, or for a rollout that nobody knows.
-- Grain: one row per reward span. `reason`: no_number, not_finite, unknown_rollout.
-- Inputs: spans, rewards_given.
-- Rule: a rollout is known where an execution of it begins or ends in the epoch's range of the spool.
WITH unknown AS (
    SELECT DISTINCT rollout_id, attempt_id, span_id, coalesce(reward_name, 'reward') AS name, reward AS value
    FROM spans
    ANTI JOIN (
        SELECT DISTINCT rollout_id FROM spans WHERE op IN ('rollout', 'rollout.start') AND rollout_id IS NOT NULL
    ) AS known USING (rollout_id)
    WHERE op = 'reward' OR reward IS NOT NULL
)
SELECT rollout_id, attempt_id, span_id, name, value, left_out AS reason
FROM rewards_given
WHERE left_out IN ('no_number', 'not_finite')
UNION ALL
SELECT rollout_id, attempt_id, span_id, name, value, 'unknown_rollout' FROM unknown
ORDER BY ALL
