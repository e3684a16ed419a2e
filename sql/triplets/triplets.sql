-- (prompt ids, response ids, reward): what a policy can learn from.
-- Grain: one row per choice of a call that trains (one choice unless the agent asked for `n` > 1). `reward` is what the
-- call is credited with. A view: the tokens are those of sampled_calls.
-- Inputs: sampled_calls, policy_calls, call_returns.
-- Rule: the response of a call is that of its choices one after another; `choice_lengths` says how many tokens each has.
WITH credited AS (
    SELECT
        calls.call_id,
        calls.rollout_id,
        calls.attempt_id,
        calls.policy,
        calls.policy_version,
        returns.return AS reward
    FROM policy_calls AS calls
    JOIN call_returns AS returns USING (call_id)
    WHERE calls.left_out IS NULL AND returns.left_out IS NULL
),
several AS (
    SELECT *, unnest(range(len(choice_lengths))) AS choice FROM sampled_calls WHERE choice_lengths IS NOT NULL
),
bounds AS (
    SELECT *, coalesce(list_sum(choice_lengths[1:choice]), 0)::INTEGER AS before, choice_lengths[choice + 1] AS length FROM several
)
SELECT credited.*, 0 AS choice, prompt_ids, response_ids, response_logprobs
FROM sampled_calls
JOIN credited USING (call_id)
WHERE choice_lengths IS NULL
UNION ALL
SELECT
    credited.*,
    choice,
    prompt_ids,
    response_ids[before + 1:before + length],
    response_logprobs[before + 1:before + length]
FROM bounds
JOIN credited USING (call_id)
WHERE length > 0
