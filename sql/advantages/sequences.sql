-- The rows that are trained on.
-- Grain: one row per sequence: one or more calls of a rollout, merged where each prompt extends the last.
-- Inputs: triplets, merges, advantages, policies (policy, max_sequence_tokens: longer ones are left out, see `exclusions`).
-- Rule: the tokens are those of the last call's prompt and response; what was sampled on the way is trained
-- (loss_mask 1), what came between (tool results, user turns) is context. Every list has one entry a token.
WITH parts AS (
    SELECT
        merges.sequence_id,
        merges.place,
        triplets.*,
        -- tokens between the end of the call before and this call's first sampled one
        len(prompt_ids) - coalesce(
            lag(len(prompt_ids) + len(response_ids)) OVER (PARTITION BY merges.sequence_id ORDER BY merges.place), 0
        ) AS context_tokens
    FROM merges
    JOIN triplets USING (call_id, choice)
),
joined AS (
    SELECT
        policy,
        group_id,
        rollout_id,
        attempt_id,
        sequence_id,
        list(call_id || '.' || choice ORDER BY place) AS call_ids,
        min(policy_version) AS policy_version,
        max_by(list_concat(prompt_ids, response_ids), place) AS token_ids,
        min_by(len(prompt_ids), place)::INTEGER AS prompt_length,
        flatten(list(list_concat(repeat([0::UTINYINT], context_tokens), repeat([1::UTINYINT], len(response_ids))) ORDER BY place)) AS loss_mask,
        flatten(list(list_concat(repeat([0::FLOAT], context_tokens), response_logprobs) ORDER BY place)) AS logprobs
    FROM parts
    GROUP BY policy, group_id, rollout_id, attempt_id, sequence_id
)
SELECT
    joined.rollout_id || '/' || joined.attempt_id || '/' || joined.sequence_id AS sequence_id,
    joined.* EXCLUDE (sequence_id),
    advantages.reward,
    advantages.advantage,
    [CASE WHEN trained = 1 THEN advantages.advantage ELSE 0 END::FLOAT FOR trained IN joined.loss_mask] AS advantages
FROM joined
JOIN advantages USING (policy, group_id, rollout_id, attempt_id)
JOIN policies USING (policy)
WHERE advantages.left_out IS NULL AND len(joined.token_ids) <= policies.max_sequence_tokens
ORDER BY policy, group_id, rollout_id, sequence_id
