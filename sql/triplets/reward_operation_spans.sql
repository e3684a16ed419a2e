-- Spans inside a reward operation: calls among them are a judge's, no agent's.
-- Grain: one row per such span; of a call that was seen twice the record that stays. Inputs: nodes, spans, components, llm_twins.
-- Rule: inside by declared parents, of any record of the call. Operations are spans that emit a reward as such, and Agent
-- Lightning's `agentlightning.operation` by the name of `agentlightning.reward`. As a rule nothing is inside: DuckDB knows of groups
-- how few they are, and then looks for no more.
WITH RECURSIVE
operations AS MATERIALIZED (
    SELECT node FROM nodes WHERE op = 'reward'
    UNION ALL
    SELECT nodes.node
    FROM spans
    JOIN nodes USING (record_offset, record_index)
    WHERE spans.name = 'agentlightning.operation' AND spans.attributes['agentlightning.operation.name'] = 'agentlightning.reward'
),
children AS MATERIALIZED (
    SELECT components.node, components.top
    FROM components
    JOIN (SELECT node FROM operations GROUP BY node) AS above ON above.node = components.parent
),
below AS MATERIALIZED (
    SELECT components.node, components.parent FROM components JOIN (SELECT top FROM children GROUP BY top) AS trees USING (top)
),
inside AS (
    SELECT node FROM children
    UNION
    SELECT below.node FROM inside JOIN below ON below.parent = inside.node
)
SELECT DISTINCT coalesce(llm_twins.kept, inside.node) AS node FROM inside LEFT JOIN llm_twins USING (node)
