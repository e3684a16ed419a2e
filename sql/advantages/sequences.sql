-- The rows that are trained on.
-- Grain: one row per sequence: one or more calls of a rollout, merged where each prompt extends the last.
-- Inputs: kept_triplets, triplets, rollout_rewards.
-- Rule: the tokens are those of the last call's prompt and response; what was sampled on the way is trained
-- (loss_mask 1), what came between (tool results, user turns, calls that are left out) is context. Every list has one
-- entry a token. `reward` is the rollout's, `advantage` the mean over the trained calls.
WITH parts AS (
    SELECT
        kept.sequence_id,
        kept.place,
        kept.trained,
        kept.advantage,
        triplets.*,
        -- tokens between the end of the call before and this call's first sampled one
        (len(prompt_ids) - coalesce(
            lag(len(prompt_ids) + len(response_ids)) OVER (PARTITION BY kept.sequence_id ORDER BY kept.place), 0
        ))::INTEGER AS context_tokens,
        kept.place = max(kept.place) OVER (PARTITION BY kept.sequence_id) AS last_of_sequence
    FROM kept_triplets AS kept
    JOIN triplets USING (call_id, choice)
    WHERE kept.kept
),
joined AS (
    SELECT
        policy,
        group_id,
        rollout_id,
        attempt_id,
        sequence_id,
        list(call_id || '.' || choice ORDER BY place) FILTER (trained) AS call_ids,
        min(policy_version) FILTER (trained) AS policy_version,
        (min(len(prompt_ids)) FILTER (trained))::INTEGER AS prompt_length,
        first(list_concat(prompt_ids, response_ids)) FILTER (last_of_sequence) AS token_ids,
        flatten(list(
            list_resize(list_resize([]::UTINYINT[], context_tokens, 0), context_tokens + len(response_ids), trained::UTINYINT)
            ORDER BY place
        )) AS loss_mask,
        flatten(list(
            CASE
                WHEN trained THEN list_concat(list_resize([]::FLOAT[], context_tokens, 0), response_logprobs)
                ELSE list_resize([]::FLOAT[], context_tokens + len(response_ids), 0)
            END
            ORDER BY place
        )) AS logprobs,
        flatten(list(
            list_resize(list_resize([]::FLOAT[], context_tokens, 0), context_tokens + len(response_ids), CASE WHEN trained THEN advantage ELSE 0 END::FLOAT)
            ORDER BY place
        )) AS advantages,
        list_avg(list(advantage ORDER BY place) FILTER (trained)) AS advantage
    FROM parts
    GROUP BY policy, group_id, rollout_id, attempt_id, sequence_id
)
SELECT
    joined.rollout_id || '/' || joined.attempt_id || '/' || joined.sequence_id AS sequence_id,
    joined.* EXCLUDE (sequence_id, advantages, advantage),
    rewards.reward,
    joined.advantage,
    joined.advantages
FROM joined
JOIN rollout_rewards AS rewards ON rewards.rollout_id = joined.rollout_id AND rewards.attempt_id = joined.attempt_id
ORDER BY policy, group_id, joined.rollout_id, sequence_id
