-- Spans that declare no parent, or one that is not in the attempt.
-- Grain: one row per such span; few in an epoch with complete spans. Inputs: nodes, declared_parent.
SELECT node, attempt, op, parent_key, tool_call_key IS NOT NULL AS has_tool_call, record_offset, record_index
FROM nodes
JOIN (SELECT node FROM declared_parent WHERE parent IS NULL) AS lost USING (node)
