-- Calls right under a root that have no agent by ids. Such a root is the top of a tree that contains agents (a session, a request),
-- the attempt's root, or a span right under that. Clients' spans may lie between root and call.
-- Grain: one row per such call. Inputs: components, agent_trees, evidence, nodes.
-- A table of its own, so that DuckDB knows how few rows it has.
WITH RECURSIVE
outside AS MATERIALIZED (
    -- Few, as a rule; of them alone the kind is looked up.
    SELECT node, parent, top
    FROM components
    SEMI JOIN (
        SELECT top FROM agent_trees
        UNION
        SELECT node FROM evidence WHERE method = 'root'
    ) AS roots USING (top)
    WHERE agent_node IS NULL AND depth BETWEEN 1 AND 8
),
clients AS MATERIALIZED (
    SELECT outside.*, nodes.op FROM outside JOIN nodes USING (node) WHERE nodes.op IN ('llm', 'other')
),
above AS (
    -- Up to the first span that is no client's.
    SELECT node, parent AS above, top FROM clients WHERE op = 'llm'
    UNION ALL
    SELECT above.node, clients.parent, above.top
    FROM above
    JOIN clients ON clients.node = above.above
)
SELECT node FROM above WHERE above = top
UNION
SELECT above.node
FROM above
JOIN components ON components.node = above.above
SEMI JOIN (FROM evidence WHERE method = 'root') AS roots ON roots.node = components.parent
