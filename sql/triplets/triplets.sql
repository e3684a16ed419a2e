-- (prompt ids, response ids, reward): what a policy can learn from.
-- Grain: one row per choice of a call that trains (one choice unless the agent asked for `n` > 1). `reward` is what the
-- call is credited with.
-- Inputs: policy_calls, call_returns, call_rows, spans.
WITH calls AS (
    SELECT
        calls.call_id,
        calls.rollout_id,
        calls.attempt_id,
        calls.group_id,
        calls.policy,
        calls.policy_version,
        calls.agent,
        calls.start_ns,
        calls.end_ns,
        returns.return AS reward,
        spans.prompt_ids,
        spans.response_ids,
        spans.response_logprobs,
        coalesce(spans.choice_lengths, [len(spans.response_ids)::INTEGER]) AS lengths
    FROM policy_calls AS calls
    JOIN call_returns AS returns USING (call_id)
    JOIN call_rows USING (call_id)
    JOIN spans USING (record_offset, record_index)
    WHERE calls.left_out IS NULL AND returns.left_out IS NULL
),
choices AS (
    SELECT *, unnest(range(len(lengths))) AS choice FROM calls
),
bounds AS (
    SELECT *, coalesce(list_sum(lengths[1:choice]), 0)::INTEGER AS before, lengths[choice + 1] AS length FROM choices
)
SELECT
    call_id,
    choice,
    rollout_id,
    attempt_id,
    group_id,
    policy,
    policy_version,
    agent,
    start_ns,
    end_ns,
    prompt_ids,
    response_ids[before + 1:before + length] AS response_ids,
    response_logprobs[before + 1:before + length] AS response_logprobs,
    reward
FROM bounds
WHERE length > 0
ORDER BY call_id, choice
