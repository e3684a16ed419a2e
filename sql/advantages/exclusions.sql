-- Every call of the epoch's training rollouts that is not trained on, and why.
-- Grain: one row per call that is in no sequence.
-- Inputs: policy_calls, advantages.
SELECT
    calls.call_id,
    calls.rollout_id,
    calls.attempt_id,
    calls.policy,
    calls.agent,
    coalesce(calls.left_out, advantages.left_out) AS reason
FROM policy_calls AS calls
LEFT JOIN advantages USING (policy, rollout_id, attempt_id)
WHERE calls.left_out IS NOT NULL OR advantages.left_out IS NOT NULL
ORDER BY calls.call_id
