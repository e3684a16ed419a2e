-- Where the triplets begin and end, narrow: what merging asks before it looks at whole prompts.
-- Grain: one row per triplet. `tokens` are those of prompt and response; `places` and `probes`: four positions and the
-- tokens there.
-- Inputs: triplets, policies (policy, merge).
SELECT
    call_id,
    choice,
    rollout_id,
    attempt_id,
    triplets.policy,
    policies.merge,
    len(prompt_ids)::INTEGER AS prompt_tokens,
    (len(prompt_ids) + len(response_ids))::INTEGER AS tokens,
    [len(prompt_ids) // 2 + 1, len(prompt_ids) + 1, len(prompt_ids) + len(response_ids) // 2 + 1, len(prompt_ids) + len(response_ids)] AS places,
    [prompt_ids[len(prompt_ids) // 2 + 1], response_ids[1], response_ids[len(response_ids) // 2 + 1], response_ids[-1]] AS probes
FROM triplets
JOIN policies USING (policy)
