-- The rows that are trained on.
-- Grain: one row per sequence: one or more calls of a rollout, merged if each prompt extends the last.
-- Inputs: kept_triplets, triplets.
-- Rule: the tokens are those of the last call's prompt and response. Sampled tokens are trained (loss_mask 1); those between (tool results, user
-- turns, calls that are left out) are context. Every list has one entry a token. `tokenized`: some of what is trained was not sampled, but is
-- text that the policy's chat template turned into tokens. `reward` is the rollout's reward for this policy, `advantage` the mean over the
-- trained calls.
WITH joined AS (
    SELECT
        kept.sequence_id,
        list(call_id || '.' || choice ORDER BY place) FILTER (trained) AS call_ids,
        min(triplets.policy_version) FILTER (trained) AS policy_version,
        min(kept.prompt_tokens) FILTER (trained) AS prompt_length,
        bool_or(triplets.tokenized) FILTER (trained) AS tokenized,
        list_avg(list(advantage ORDER BY place) FILTER (trained)) AS advantage,
        list({
            'context': context_tokens,
            'tokens': context_tokens + len(response_ids),
            'mask': trained::UTINYINT,
            'logprobs': CASE WHEN trained THEN response_logprobs ELSE list_resize([]::FLOAT[], len(response_ids), 0) END,
            'advantage': CASE WHEN trained THEN advantage ELSE 0 END::FLOAT
        } ORDER BY place) AS parts
    FROM kept_triplets AS kept
    JOIN triplets USING (call_id, choice)
    WHERE kept.kept
    GROUP BY kept.sequence_id
)
SELECT
    ends.rollout_id || '/' || ends.attempt_id || '/' || ends.sequence_id AS sequence_id,
    ends.policy,
    ends.group_id,
    ends.rollout_id,
    ends.attempt_id,
    joined.call_ids,
    joined.policy_version,
    joined.prompt_length,
    list_concat(triplets.prompt_ids, triplets.response_ids) AS token_ids,
    flatten([list_resize(list_resize([]::UTINYINT[], p.context, 0), p.tokens, p.mask) FOR p IN joined.parts]) AS loss_mask,
    flatten([list_concat(list_resize([]::FLOAT[], p.context, 0), p.logprobs) FOR p IN joined.parts]) AS logprobs,
    ends.reward,
    joined.advantage,
    flatten([list_resize(list_resize([]::FLOAT[], p.context, 0), p.tokens, p.advantage) FOR p IN joined.parts]) AS advantages,
    joined.tokenized
FROM kept_triplets AS ends
JOIN triplets USING (call_id, choice)
JOIN joined ON joined.sequence_id = ends.sequence_id
WHERE ends.ends_sequence
ORDER BY ends.rollout_id, ends.attempt_id, ends.policy, ends.sequence_id
