-- Spans that wait for a place: no id tells their agent, and time may. Only in attempts that have agents.
-- Grain: one row per span or missing parent, with its time by the agents' clocks.
-- Inputs: components, agent_trees, calls_under_roots, evidence, nodes, missing_parents, names, agent_spans, clocks.
-- Rule: a span that names its agent does not wait. Nor does a tree that contains agents, or on which such trees hang: parallel agents
-- enclose each other by accident, so time does not nest them. A call right under a root keeps its parent, but time may tell its agent.
WITH found AS (
    SELECT node
    FROM (
        SELECT node FROM evidence ANTI JOIN names USING (node) WHERE method IS NULL OR method = 'missing_parent'
        UNION ALL
        SELECT node FROM missing_parents WHERE NOT named
    )
    SEMI JOIN (SELECT node FROM components WHERE node = top AND NOT broken) AS tops USING (node)
    ANTI JOIN agent_trees ON agent_trees.top = node
    UNION ALL
    FROM calls_under_roots
),
timed AS (
    SELECT
        node,
        attempt,
        coalesce(start_ns, end_ns) - CASE WHEN policy IS NOT NULL THEN coalesce(clocks.ahead_ns, 0) ELSE 0 END AS start_ns,
        greatest(end_ns, start_ns) - CASE WHEN policy IS NOT NULL THEN coalesce(clocks.ahead_ns, 0) ELSE 0 END AS end_ns
    FROM found
    JOIN nodes USING (node)
    LEFT JOIN clocks USING (attempt)
    UNION ALL
    SELECT node, attempt, start_ns, end_ns FROM found JOIN missing_parents USING (node)
)
FROM timed
SEMI JOIN (SELECT attempt FROM agent_spans WHERE runs) AS agents USING (attempt)
WHERE start_ns IS NOT NULL
