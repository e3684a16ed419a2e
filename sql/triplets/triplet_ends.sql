-- How long the triplets are, narrow: what merging asks before it looks at whole prompts.
-- Grain: one row per triplet. `tokens` are those of prompt and response.
-- Inputs: triplets, policies (policy, merge).
SELECT
    call_id,
    choice,
    rollout_id,
    attempt_id,
    triplets.policy,
    policies.merge,
    len(prompt_ids)::INTEGER AS prompt_tokens,
    (len(prompt_ids) + len(response_ids))::INTEGER AS tokens
FROM triplets
JOIN policies USING (policy)
