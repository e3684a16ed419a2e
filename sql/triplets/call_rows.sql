-- The calls that policies of the settings sampled, and where in the lake they lie: their token ids and messages are one
-- join away.
-- Grain: one row per such call (twins merged). Inputs: nodes, llm_twins, policies.
SELECT
    nodes.node AS call_id,
    nodes.attempt,
    nodes.policy,
    nodes.policy_version,
    nodes.prompt_tokens,
    nodes.response_tokens,
    nodes.record_offset,
    nodes.record_index
FROM nodes
SEMI JOIN policies ON policies.policy = nodes.policy
ANTI JOIN llm_twins USING (node)
WHERE nodes.op = 'llm'
