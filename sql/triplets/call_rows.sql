-- Where in the lake the calls lie that policies of the settings sampled: their token ids and messages are one join away.
-- Grain: one row per such call (twins merged). Inputs: nodes, places, policies.
SELECT nodes.node AS call_id, nodes.rollout_id, nodes.attempt_id, nodes.record_offset, nodes.record_index
FROM nodes
JOIN places USING (node)
SEMI JOIN policies ON policies.policy = nodes.policy
WHERE nodes.op = 'llm' AND places.twin_of IS NULL
