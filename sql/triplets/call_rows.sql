-- Where in the lake the calls lie that policies of the settings sampled: their token ids and messages are one join away.
-- Grain: one row per such call (twins merged). Inputs: nodes, bucket, llm_twins, policies.
SELECT nodes.node AS call_id, bucket.rollout_id, bucket.attempt_id, nodes.policy, nodes.record_offset, nodes.record_index
FROM nodes
JOIN bucket USING (attempt)
SEMI JOIN policies ON policies.policy = nodes.policy
ANTI JOIN llm_twins USING (node)
WHERE nodes.op = 'llm'
