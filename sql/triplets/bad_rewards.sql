-- Rewards that cannot be used: no finite number, for an unknown rollout, or from a sender that may not give them.
-- Grain: one row per reward span. `reason`: no_number, not_finite, unknown_rollout, no_authority (also for a span that names a rollout and has
-- no known sender: it belongs to no rollout).
-- Inputs: spans, rewards_given.
-- Rule: a rollout is known if an attempt of it begins or ends, or is opened, in the epoch's range of the spool. A grader's reward for another
-- rollout belongs to another epoch of the run, which was graded again after this one, and is no fault.
WITH unknown AS (
    SELECT DISTINCT rollout_id, attempt_id, span_id, coalesce(reward_name, 'reward') AS name, reward AS value,
        CASE WHEN refused IS NOT NULL THEN 'no_authority' ELSE 'unknown_rollout' END AS reason
    FROM spans
    ANTI JOIN (
        SELECT DISTINCT rollout_id FROM spans WHERE op IN ('rollout', 'rollout.start', 'rollout.opened') AND rollout_id IS NOT NULL
    ) AS known USING (rollout_id)
    WHERE (op = 'reward' OR reward IS NOT NULL) AND (sender = 'secret' AND reward_source = 'grader') IS DISTINCT FROM true
)
SELECT rollout_id, attempt_id, span_id, name, value, left_out AS reason
FROM rewards_given
WHERE left_out IN ('no_number', 'not_finite', 'no_authority')
UNION ALL
SELECT rollout_id, attempt_id, span_id, name, value, reason FROM unknown
ORDER BY ALL
