-- Agents during whose time the agent around them is known to work too: a call at that time may be made by either.
-- Grain: one row per such inner agent's span. Inputs: agent_spans, waiting, components, nodes.
-- Rule: an agent that waits for the inner one emits nothing. It works if a span of its own begins in the inner one's time (50 ms are
-- tolerated), or if a turn of it, or a namesake inside it, is open then without being around the inner one.
WITH RECURSIVE
inner_ones AS MATERIALIZED (
    SELECT node, outer_node, start_ns, end_ns
    FROM agent_spans
    SEMI JOIN waiting USING (attempt)
    WHERE outer_node IS NOT NULL AND runs
),
own AS MATERIALIZED (
    SELECT components.node, components.parent, components.agent_node AS outer_node
    FROM components
    SEMI JOIN (SELECT DISTINCT outer_node FROM inner_ones) AS outer_ones ON outer_ones.outer_node = components.agent_node
),
own_spans AS MATERIALIZED (
    -- What the outer agents did.
    SELECT own.outer_node, nodes.node, nodes.op, nodes.start_ns, nodes.end_ns
    FROM own
    JOIN nodes USING (node)
    WHERE own.node <> own.outer_node AND nodes.op <> 'reward' AND nodes.start_ns IS NOT NULL
),
around AS (
    -- The spans between an agent and the one around it.
    SELECT inner_ones.node, inner_ones.outer_node, components.parent AS above
    FROM inner_ones
    JOIN components USING (node)
    UNION ALL
    SELECT around.node, around.outer_node, own.parent
    FROM around
    JOIN own ON own.node = around.above
    WHERE around.above <> around.outer_node
)
SELECT inner_ones.node
FROM inner_ones
ASOF JOIN own_spans
    ON own_spans.outer_node = inner_ones.outer_node AND inner_ones.start_ns + clock_tolerance_ns() < own_spans.start_ns
WHERE own_spans.start_ns < inner_ones.end_ns
UNION
SELECT inner_ones.node
FROM inner_ones
JOIN own_spans
    ON own_spans.outer_node = inner_ones.outer_node
    AND own_spans.op IN ('agent', 'chain', 'workflow', 'task')
    AND own_spans.start_ns <= inner_ones.start_ns + clock_tolerance_ns()
    AND coalesce(own_spans.end_ns > inner_ones.start_ns, true)
ANTI JOIN around ON around.node = inner_ones.node AND around.above = own_spans.node
