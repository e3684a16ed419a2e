-- Spans that may contain another record of the same call: calls, tools, and spans of no kind (an HTTP client's) around them.
-- Grain: one row per such span that has children by declared parents. Inputs: nodes, declared.
-- A table of its own, so that DuckDB knows how few there are before `llm_twins` and `tool_twins` look at children.
SELECT nodes.node, nodes.op
FROM nodes
JOIN (SELECT parent AS node FROM declared GROUP BY parent) AS parents USING (node)
WHERE nodes.op IN ('llm', 'tool', 'other')
