-- The trees that ids alone make of an attempt's spans, and where each span is in its own.
-- Grain: one row per span and per missing parent. `top` heads its tree, `depth` counts from there, `parent` is NULL for it;
-- `agent_node` is the
-- nearest named ancestor-or-self whose name differs from that of the one above it (`outer_node`): NULL where nothing in
-- this tree has a name.
-- Inputs: nodes, edges, missing_parents, names.
-- Rule: a cycle is broken at its earliest span, which then heads a tree (`broken`).
WITH RECURSIVE
hashed AS MATERIALIZED (
    SELECT node, hash(agent_name) AS name FROM names
),
steps AS MATERIALIZED (
    SELECT edges.node, edges.parent, hashed.name FROM edges LEFT JOIN hashed USING (node)
),
tops AS (
    SELECT node FROM nodes ANTI JOIN edges USING (node)
    UNION ALL
    SELECT node FROM missing_parents
),
reached AS MATERIALIZED (
    SELECT
        tops.node,
        NULL::BIGINT AS parent,
        tops.node AS top,
        0 AS depth,
        CASE WHEN hashed.name IS NOT NULL THEN tops.node END AS agent_node,
        NULL::BIGINT AS outer_node,
        hashed.name
    FROM tops
    LEFT JOIN hashed USING (node)
    UNION ALL
    SELECT
        steps.node,
        steps.parent,
        reached.top,
        reached.depth + 1,
        CASE WHEN coalesce(steps.name = reached.name, steps.name IS NULL) THEN reached.agent_node ELSE steps.node END,
        CASE WHEN coalesce(steps.name = reached.name, steps.name IS NULL) THEN reached.outer_node ELSE reached.agent_node END,
        coalesce(steps.name, reached.name)
    FROM reached
    JOIN steps ON steps.parent = reached.node
),
lost AS MATERIALIZED (
    FROM steps ANTI JOIN reached USING (node)
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
        steps.node,
        NULL::BIGINT AS parent,
        steps.node AS top,
        0 AS depth,
        CASE WHEN steps.name IS NOT NULL THEN steps.node END AS agent_node,
        NULL::BIGINT AS outer_node,
        steps.name
    FROM steps
    SEMI JOIN broken USING (node)
    UNION ALL
    SELECT
        hanging.node,
        hanging.parent,
        again.top,
        again.depth + 1,
        CASE WHEN coalesce(hanging.name = again.name, hanging.name IS NULL) THEN again.agent_node ELSE hanging.node END,
        CASE WHEN coalesce(hanging.name = again.name, hanging.name IS NULL) THEN again.outer_node ELSE again.agent_node END,
        coalesce(hanging.name, again.name)
    FROM again
    JOIN hanging ON hanging.parent = again.node
)
SELECT node, parent, top, depth, agent_node, outer_node, false AS broken FROM reached
UNION ALL
SELECT node, parent, top, depth, agent_node, outer_node, node = top FROM again
