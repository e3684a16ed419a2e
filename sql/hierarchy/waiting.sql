-- Spans of which no id tells the agent, and which time may therefore place: in attempts that have agents to place them
-- under.
-- Grain: one row per span or missing parent, with the time that has to lie inside an agent's.
-- Inputs: components, hooks, evidence, nodes, missing_parents, names, agent_spans.
-- Rule: what names its agent needs no guess; nor is a tree put under an agent by time if agents are in it or hang on it,
-- since parallel agents enclose each other by accident.
WITH RECURSIVE
candidates AS (
    SELECT nodes.node, nodes.attempt, coalesce(start_ns, end_ns) AS start_ns, greatest(end_ns, start_ns) AS end_ns
    FROM evidence
    JOIN nodes USING (node)
    ANTI JOIN names USING (node)
    WHERE evidence.method IS NULL OR evidence.method = 'missing_parent'
    UNION ALL
    SELECT node, attempt, start_ns, end_ns FROM missing_parents WHERE NOT named
),
holding AS (
    SELECT top FROM agent_spans WHERE runs
    UNION
    SELECT hooks.onto FROM holding JOIN hooks USING (top)
)
SELECT candidates.*
FROM candidates
SEMI JOIN (SELECT node FROM components WHERE node = top AND NOT broken) AS tops USING (node)
SEMI JOIN (SELECT attempt FROM agent_spans WHERE runs) AS agents USING (attempt)
ANTI JOIN holding ON holding.top = candidates.node
WHERE candidates.start_ns IS NOT NULL
