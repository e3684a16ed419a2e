-- The triplets without their tokens, and where in the lake these are.
-- Grain: one row per choice of a call that trains (one choice unless the agent asked for `n` > 1). `reward` is what the call is credited with.
-- Of the call's sampled tokens those of the choice begin after the first `tokens_before`.
-- Inputs: sampled_calls, call_returns, call_rows.
-- Rule: the response of a call is that of its choices one after another; `choice_lengths` says how many tokens each has.
WITH choices AS (
    SELECT call_id, 0 AS choice, 0 AS tokens_before, NULL AS response_tokens FROM sampled_calls WHERE choice_lengths IS NULL
    UNION ALL
    SELECT
        call_id,
        choice,
        tokens_before(choice_lengths, choice),
        choice_lengths[choice + 1]
    FROM (
        SELECT call_id, choice_lengths, unnest(range(len(choice_lengths))) AS choice FROM sampled_calls WHERE choice_lengths IS NOT NULL
    )
)
SELECT
    call_returns.call_id,
    choices.choice,
    call_returns.rollout_id,
    call_returns.attempt_id,
    call_returns.policy,
    call_rows.policy_version,
    call_returns.return AS reward,
    call_rows.prompt_tokens,
    choices.tokens_before,
    coalesce(choices.response_tokens, call_rows.response_tokens) AS response_tokens,
    call_rows.tokenized,
    call_rows.record_offset,
    call_rows.record_index
FROM call_returns
JOIN call_rows USING (call_id)
JOIN choices USING (call_id)
WHERE call_returns.left_out IS NULL AND coalesce(choices.response_tokens > 0, true)
