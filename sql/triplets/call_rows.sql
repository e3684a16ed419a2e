-- Where in the lake the calls lie that policies of the settings sampled: their token ids and messages are one join away.
-- Grain: one row per such call (twins merged). Inputs: nodes, llm_twins, policies.
SELECT nodes.node AS call_id, nodes.rollout_id, nodes.attempt_id, nodes.policy, nodes.record_offset, nodes.record_index
FROM nodes
SEMI JOIN policies ON policies.policy = nodes.policy
ANTI JOIN llm_twins USING (node)
WHERE nodes.op = 'llm'
