-- Every call of the attempts that count that is not trained on, choice by choice, and why.
-- Grain: one row per (call, choice) that is in no sequence.
-- Inputs: policy_calls, sampled_calls, call_returns, kept_triplets.
-- Rule: the first reason that holds: the call itself was left out; its return cannot be trusted; the choice is empty; its advantage; its length.
WITH choices AS (
    SELECT
        calls.*,
        unnest(range(CASE WHEN sampled.flaw IS NULL THEN greatest(coalesce(len(sampled.choice_lengths), 1), 1) ELSE 1 END)) AS choice
    FROM policy_calls AS calls
    LEFT JOIN sampled_calls AS sampled USING (call_id)
)
SELECT
    choices.call_id,
    choices.choice,
    choices.rollout_id,
    choices.attempt_id,
    choices.span_id,
    choices.policy,
    choices.agent,
    coalesce(
        choices.left_out,
        call_returns.left_out,
        CASE WHEN kept.call_id IS NULL THEN 'empty_response' END,
        kept.left_out
    ) AS reason
FROM choices
LEFT JOIN call_returns USING (call_id)
LEFT JOIN kept_triplets AS kept ON kept.call_id = choices.call_id AND kept.choice = choices.choice
WHERE kept.trained IS DISTINCT FROM true
ORDER BY choices.call_id, choices.choice
