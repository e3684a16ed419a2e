-- Every call of the epoch's training rollouts that is not trained on, and why.
-- Grain: one row per call that is in no sequence.
-- Inputs: policy_calls, call_returns, kept_triplets.
-- Rule: the first that holds: what left out the call itself; that its return cannot be trusted; its advantage; its length.
WITH left_out AS (
    SELECT call_id, min(left_out) AS left_out FROM kept_triplets GROUP BY call_id HAVING NOT bool_or(trained)
)
SELECT
    calls.call_id,
    calls.rollout_id,
    calls.attempt_id,
    calls.span_id,
    calls.policy,
    calls.agent,
    coalesce(calls.left_out, returns.left_out, left_out.left_out) AS reason
FROM policy_calls AS calls
LEFT JOIN call_returns AS returns USING (call_id)
LEFT JOIN left_out USING (call_id)
WHERE calls.left_out IS NOT NULL OR returns.left_out IS NOT NULL OR left_out.call_id IS NOT NULL
ORDER BY calls.call_id
