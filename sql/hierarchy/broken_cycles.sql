-- The trees of spans whose declared parents form a circle, once the circle is broken.
-- Grain: one row per span that is below no top of a tree, as in `components`. Inputs: edges, names, nodes, missing_parents, reached.
-- Rule: a circle is broken at its earliest span, which then heads a tree (`broken`).
WITH RECURSIVE
hashed AS MATERIALIZED (
    SELECT node, hash(agent_name) AS name FROM names
),
missed AS MATERIALIZED (
    -- A row where spans were not reached, as a rule none: then nobody looks which.
    SELECT true AS lost
    WHERE (SELECT count(*) FROM reached) < (SELECT count(*) FROM nodes) + (SELECT count(*) FROM missing_parents)
),
lost AS MATERIALIZED (
    SELECT edges.node, edges.parent, edges.confidence, hashed.name
    FROM (FROM edges WHERE EXISTS (FROM missed)) AS edges
    ANTI JOIN (FROM reached WHERE EXISTS (FROM missed)) AS reached USING (node)
    LEFT JOIN hashed USING (node)
),
laps(node, above, earliest, reach) USING KEY (node) AS (
    -- Each round doubles how far up a span has looked; after as many steps as there are spans it is on a cycle, and has
    -- seen all of it if it began on it.
    SELECT node, parent, least(node, parent), 1::BIGINT FROM lost
    UNION
    SELECT laps.node, further.above, least(laps.earliest, further.earliest), laps.reach + further.reach
    FROM laps
    JOIN recurring.laps AS further ON further.node = laps.above
    WHERE laps.reach < (SELECT count(*) FROM lost)
),
broken AS (
    SELECT DISTINCT round_it.earliest AS node FROM laps JOIN laps AS round_it ON round_it.node = laps.above
),
hanging AS MATERIALIZED (
    FROM lost ANTI JOIN broken USING (node)
),
again AS (
    SELECT
        lost.node,
        NULL::BIGINT AS parent,
        lost.node AS top,
        0 AS depth,
        CASE WHEN lost.name IS NOT NULL THEN lost.node END AS agent_node,
        NULL::BIGINT AS outer_node,
        lost.name,
        1.0::DOUBLE AS confidence
    FROM lost
    SEMI JOIN broken USING (node)
    UNION ALL
    SELECT
        hanging.node,
        hanging.parent,
        again.top,
        again.depth + 1,
        CASE WHEN coalesce(hanging.name = again.name, hanging.name IS NULL) THEN again.agent_node ELSE hanging.node END,
        CASE WHEN coalesce(hanging.name = again.name, hanging.name IS NULL) THEN again.outer_node ELSE again.agent_node END,
        coalesce(hanging.name, again.name),
        CASE WHEN coalesce(hanging.name = again.name, hanging.name IS NULL) THEN least(hanging.confidence, again.confidence) ELSE 1.0 END
    FROM again
    JOIN hanging ON hanging.parent = again.node
)
SELECT node, parent, top, depth, agent_node, outer_node, confidence, node = top AS broken FROM again
