-- The lengths of the triplets: what merging needs before it looks at whole prompts.
-- Grain: one row per triplet. `tokens` are those of prompt and response.
-- Inputs: triplets, policies (policy, merge).
SELECT
    call_id,
    choice,
    rollout_id,
    attempt_id,
    triplets.policy,
    policies.merge,
    prompt_tokens,
    prompt_tokens + response_tokens AS tokens
FROM triplets
JOIN policies USING (policy)
