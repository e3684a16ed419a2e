-- Which triplets are trained, and what remains of each sequence.
-- Grain: one row per triplet. `kept`: its tokens are in the sequence. `trained`: they are trained, and not only context. `left_out`: why not.
-- `context_tokens`: the tokens between the end of the previous call and its first sampled one. `ends_sequence`: the last one kept.
-- Inputs: merges, call_returns, advantages, sampled_calls, policies (policy, max_sequence_tokens, too_long).
-- Rule: a sequence that is too long loses whole calls from its end until it fits (`sequence_too_long`), never a part of one; with
-- `too_long: drop_rollout` all calls of the rollout are left out (`rollout_too_long`). A reply that ended at its limit of tokens is left out if
-- the policy says so (`truncated`). A sequence ends with its last trained call.
WITH judged AS (
    SELECT
        merges.*,
        call_returns.group_id,
        call_returns.reward,
        advantages.advantage,
        advantages.left_out AS no_advantage,
        coalesce((sampled_calls.finish_reasons ->> merges.choice::BIGINT) = 'length', false) AS truncated,
        merges.tokens <= policies.max_sequence_tokens AS fits,
        policies.too_long = 'drop_rollout' AND bool_or(merges.tokens > policies.max_sequence_tokens) OVER (
            PARTITION BY merges.policy, merges.rollout_id, merges.attempt_id
        ) AS dropped
    FROM merges
    JOIN policies USING (policy)
    JOIN call_returns USING (call_id)
    JOIN sampled_calls USING (call_id)
    JOIN advantages
        ON advantages.policy = call_returns.policy
        AND advantages.rollout_id = call_returns.rollout_id
        AND advantages.attempt_id = call_returns.attempt_id
        AND advantages.agent = call_returns.agent
        AND advantages.step = call_returns.step
)
SELECT
    call_id,
    choice,
    policy,
    group_id,
    rollout_id,
    attempt_id,
    reward,
    sequence_id,
    place,
    prompt_tokens,
    prompt_tokens - coalesce(lag(tokens) OVER (PARTITION BY sequence_id ORDER BY place), 0) AS context_tokens,
    advantage,
    trains AS trained,
    coalesce(place <= last_place, false) AS kept,
    coalesce(place = last_place, false) AS ends_sequence,
    CASE
        WHEN no_advantage IS NOT NULL THEN no_advantage
        WHEN dropped THEN 'rollout_too_long'
        WHEN NOT fits THEN 'sequence_too_long'
        WHEN truncated THEN 'truncated'
    END AS left_out
FROM (
    SELECT *, max(place) FILTER (trains) OVER (PARTITION BY sequence_id) AS last_place
    FROM (SELECT *, no_advantage IS NULL AND fits AND NOT dropped AND NOT truncated AS trains FROM judged)
)
ORDER BY call_id, choice
