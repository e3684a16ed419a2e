-- Every call of the epoch's training rollouts that is not trained on, and why.
-- Grain: one row per call that is in no sequence.
-- Inputs: policy_calls, advantages, sequences.
-- Rule: what left out the call itself; else its rollout's advantage; else its sequence was longer than
-- max_sequence_tokens.
WITH trained AS (
    SELECT DISTINCT split_part(unnest(call_ids), '.', 1)::BIGINT AS call_id FROM sequences
)
SELECT
    calls.call_id,
    calls.rollout_id,
    calls.attempt_id,
    calls.policy,
    calls.agent,
    coalesce(calls.left_out, advantages.left_out, 'sequence_too_long') AS reason
FROM policy_calls AS calls
ANTI JOIN trained USING (call_id)
LEFT JOIN advantages USING (policy, rollout_id, attempt_id)
ORDER BY calls.call_id
