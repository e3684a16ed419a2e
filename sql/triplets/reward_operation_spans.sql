-- Spans inside a reward operation: calls among them are a judge's, not an agent's.
-- Grain: one row per such span; for a call that was recorded twice, the record that stays. Inputs: nodes, spans, components, llm_twins.
-- Rule: inside by declared parents, of any record of the call. Reward operations are spans that are themselves rewards, and Agent Lightning's
-- `agentlightning.operation` with the name `agentlightning.reward`. Normally nothing is inside: DuckDB knows the sizes of groups, and then looks
-- for no more.
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
