-- The trees that ids alone make of an attempt's spans, and the place of each span in its tree, without circles of parents.
-- Grain: one row per span and per missing parent that is below a top of a tree, as in `components`.
-- Inputs: evidence, edges, missing_parents, names.
WITH RECURSIVE
hashed AS MATERIALIZED (
    SELECT node, hash(agent_name) AS name FROM names
),
tops AS (
    -- What is in no edge: such spans are all in `evidence`.
    SELECT node FROM evidence WHERE parent IS NULL OR method = 'link'
    UNION ALL
    SELECT node FROM missing_parents
),
reached AS (
    SELECT
        tops.node,
        NULL::BIGINT AS parent,
        tops.node AS top,
        0 AS depth,
        CASE WHEN hashed.name IS NOT NULL THEN tops.node END AS agent_node,
        NULL::BIGINT AS outer_node,
        hashed.name,
        1.0::DOUBLE AS confidence
    FROM tops
    LEFT JOIN hashed USING (node)
    UNION ALL
    SELECT
        edges.node,
        edges.parent,
        reached.top,
        reached.depth + 1,
        CASE WHEN coalesce(hashed.name = reached.name, hashed.name IS NULL) THEN reached.agent_node ELSE edges.node END,
        CASE WHEN coalesce(hashed.name = reached.name, hashed.name IS NULL) THEN reached.outer_node ELSE reached.agent_node END,
        coalesce(hashed.name, reached.name),
        CASE WHEN coalesce(hashed.name = reached.name, hashed.name IS NULL) THEN least(edges.confidence, reached.confidence) ELSE 1.0 END
    FROM reached
    JOIN edges ON edges.parent = reached.node
    LEFT JOIN hashed ON hashed.node = edges.node
)
SELECT node, parent, top, depth, agent_node, outer_node, confidence, false AS broken FROM reached
