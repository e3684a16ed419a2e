-- Spans of which no id tells the agent, and which time may therefore place: in attempts that have agents to place them
-- under.
-- Grain: one row per span or missing parent, with its time by the agents' clocks.
-- Inputs: components, hooks, evidence, nodes, missing_parents, names, agent_spans, clocks.
-- Rule: what names its agent needs no guess; nor is a tree put under an agent by time if agents are in it or hang on it,
-- since parallel agents enclose each other by accident. But a call right under the top of such a tree (a session, a request),
-- under the attempt's root or a span right under that, clients' spans between them or not, is of no agent by ids: it keeps its
-- parent, and time may say which agent it is.
WITH RECURSIVE
candidates AS (
    SELECT
        nodes.node,
        nodes.attempt,
        coalesce(start_ns, end_ns) - CASE WHEN nodes.policy IS NOT NULL THEN coalesce(clocks.ahead_ns, 0) ELSE 0 END AS start_ns,
        greatest(end_ns, start_ns) - CASE WHEN nodes.policy IS NOT NULL THEN coalesce(clocks.ahead_ns, 0) ELSE 0 END AS end_ns
    FROM evidence
    JOIN nodes USING (node)
    LEFT JOIN clocks USING (attempt)
    ANTI JOIN names USING (node)
    WHERE evidence.method IS NULL OR evidence.method = 'missing_parent'
    UNION ALL
    SELECT node, attempt, start_ns, end_ns FROM missing_parents WHERE NOT named
),
holding AS (
    SELECT top FROM agent_spans WHERE runs
    UNION
    SELECT hooks.onto FROM holding JOIN hooks USING (top)
),
tops AS (
    SELECT candidates.*
    FROM candidates
    SEMI JOIN (SELECT node FROM components WHERE node = top AND NOT broken) AS tops USING (node)
    ANTI JOIN holding ON holding.top = candidates.node
),
clients AS MATERIALIZED (
    SELECT components.node, components.parent, components.top, nodes.op
    FROM components
    JOIN nodes ON nodes.node = components.node AND nodes.op IN ('llm', 'other')
    JOIN (
        SELECT top FROM holding
        UNION
        SELECT node FROM evidence WHERE method = 'root'
    ) AS roots ON roots.top = components.top
    WHERE components.agent_node IS NULL AND components.depth BETWEEN 1 AND 8
),
above AS (
    -- Up to the first span that is no client's.
    SELECT node, parent AS above, top FROM clients WHERE op = 'llm'
    UNION ALL
    SELECT above.node, clients.parent, above.top
    FROM above
    JOIN clients ON clients.node = above.above
),
under_a_root AS (
    SELECT node FROM above WHERE above = top
    UNION
    SELECT above.node
    FROM above
    JOIN components ON components.node = above.above
    SEMI JOIN (FROM evidence WHERE method = 'root') AS roots ON roots.node = components.parent
)
SELECT found.*
FROM (
    FROM tops
    UNION ALL
    SELECT
        nodes.node,
        nodes.attempt,
        coalesce(start_ns, end_ns) - CASE WHEN nodes.policy IS NOT NULL THEN coalesce(clocks.ahead_ns, 0) ELSE 0 END,
        greatest(end_ns, start_ns) - CASE WHEN nodes.policy IS NOT NULL THEN coalesce(clocks.ahead_ns, 0) ELSE 0 END
    FROM under_a_root
    JOIN nodes USING (node)
    LEFT JOIN clocks USING (attempt)
) AS found
SEMI JOIN (SELECT attempt FROM agent_spans WHERE runs) AS agents USING (attempt)
WHERE found.start_ns IS NOT NULL
