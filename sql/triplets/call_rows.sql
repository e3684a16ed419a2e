-- The calls that policies of the settings sampled, and where in the lake they are: token ids and messages are one join away.
-- Grain: one row per such call (twins merged). `tokenized`: another model answered it; its tokens are those of `tokenized_calls`.
-- Inputs: nodes, llm_twins, policies, tokenized_calls (record_offset, record_index, policy, prompt_ids, response_ids, flaw).
SELECT
    nodes.node AS call_id,
    nodes.attempt,
    policies.policy,
    nodes.policy_version,
    coalesce(nodes.prompt_tokens, len(tokenized.prompt_ids)::INTEGER) AS prompt_tokens,
    coalesce(nodes.response_tokens, len(tokenized.response_ids)::INTEGER) AS response_tokens,
    tokenized.policy IS NOT NULL AS tokenized,
    nodes.record_offset,
    nodes.record_index
FROM nodes
LEFT JOIN tokenized_calls AS tokenized USING (record_offset, record_index)
JOIN policies ON policies.policy = coalesce(nodes.policy, tokenized.policy)
ANTI JOIN llm_twins USING (node)
WHERE nodes.op = 'llm'
