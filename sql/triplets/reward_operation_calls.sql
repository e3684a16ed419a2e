-- Calls inside a reward operation: a judge's, no agent's.
-- Grain: one row per call (twins merged). Inputs: nodes, spans, edges, llm_twins.
-- Rule: inside by declared parents, of any record of the call. Operations are spans that emit a reward as such, and Agent
-- Lightning's `agentlightning.operation` by the name of `agentlightning.reward`.
WITH RECURSIVE
operations AS MATERIALIZED (
    SELECT node FROM nodes WHERE op = 'reward'
    UNION ALL
    SELECT nodes.node
    FROM spans
    JOIN nodes USING (record_offset, record_index)
    WHERE spans.name = 'agentlightning.operation' AND spans.attributes['agentlightning.operation.name'] = 'agentlightning.reward'
),
inside AS (
    SELECT edges.node FROM operations JOIN edges ON edges.parent = operations.node
    UNION ALL
    SELECT edges.node FROM inside JOIN edges ON edges.parent = inside.node
)
SELECT DISTINCT coalesce(llm_twins.kept, nodes.node) AS call_id
FROM inside
JOIN nodes USING (node)
LEFT JOIN llm_twins USING (node)
WHERE nodes.op = 'llm'
