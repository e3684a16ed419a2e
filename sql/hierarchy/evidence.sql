-- The spans whose place is not simply under their declared parent, and what ids tell of that place.
-- Grain: one row per span that heads an attempt, is one of two records of a call, or declares no parent that is in the attempt.
-- `parent` is NULL if ids do not tell it; `beside` is a call whose place the span shares.
-- Inputs: nodes, declared, orphans, llm_twins, tool_callers, span_links.
-- Rule: the first of these that applies: `twin` (the place of the outermost record of the same call), `declared`, `tool_call` (a tool beside the
-- call that asked for it, or a call beside the first tool it asked for), `link`, `missing_parent` (`missing_key` says which), nothing yet.
WITH roots AS (
    SELECT min(node) AS node FROM nodes WHERE op = 'rollout' GROUP BY attempt
),
records AS MATERIALIZED (
    SELECT kept AS call, node FROM llm_twins
    UNION
    SELECT kept, kept FROM llm_twins
),
calls AS MATERIALIZED (
    -- What one record declares as its parent is no place for the call where it is another record of it.
    SELECT
        records.call AS node,
        min_by(declared.parent, records.node) AS parent,
        min(records.node) FILTER (WHERE declared.parent IS NOT NULL) AS record
    FROM records
    LEFT JOIN (
        SELECT declared.node, declared.parent
        FROM declared
        JOIN records AS child USING (node)
        ANTI JOIN records AS above ON above.call = child.call AND above.node = declared.parent
    ) AS declared USING (node)
    GROUP BY records.call
),
tools AS (
    SELECT
        tool_callers.node,
        tool_callers.call,
        CASE WHEN calls.node IS NULL THEN declared.parent ELSE calls.parent END AS parent
    FROM tool_callers
    SEMI JOIN orphans USING (node)
    LEFT JOIN calls ON calls.node = tool_callers.call
    LEFT JOIN declared ON declared.node = tool_callers.call
),
callers AS (
    SELECT tool_callers.call AS node, min_by(declared.parent, declared.node) AS parent
    FROM tool_callers
    JOIN declared USING (node)
    ANTI JOIN (SELECT node FROM calls WHERE parent IS NOT NULL) AS placed ON placed.node = tool_callers.call
    ANTI JOIN records ON records.call = tool_callers.call AND records.node = declared.parent
    WHERE declared.parent <> tool_callers.call
        AND (tool_callers.call IN (SELECT node FROM orphans) OR tool_callers.call IN (SELECT node FROM calls))
    GROUP BY tool_callers.call
),
rungs AS (
    SELECT 1 AS rung, node, NULL::BIGINT AS parent, NULL::BIGINT AS beside, 'root' AS method, NULL::UBIGINT AS missing_key FROM roots
    UNION ALL
    SELECT 2, node, parent, NULL, CASE WHEN record = node THEN 'declared' ELSE 'twin' END, NULL
    FROM calls
    WHERE parent IS NOT NULL
    UNION ALL
    SELECT 3, node, parent, CASE WHEN parent IS NULL THEN call END, 'tool_call', NULL FROM tools
    UNION ALL
    SELECT 3, node, parent, NULL, 'tool_call', NULL FROM callers
    UNION ALL
    SELECT 4, llm_twins.node, NULL, kept, 'twin', NULL FROM llm_twins SEMI JOIN orphans USING (node)
    UNION ALL
    SELECT 5, node, parent, NULL, 'link', NULL FROM span_links
    UNION ALL
    SELECT 6, node, NULL, NULL, 'missing_parent', parent_key
    FROM orphans
    ANTI JOIN nodes ON nodes.span_key = orphans.parent_key
    WHERE parent_key IS NOT NULL
),
known AS MATERIALIZED (
    SELECT node, parent, beside, method, missing_key
    FROM rungs
    QUALIFY row_number() OVER (PARTITION BY node ORDER BY rung) = 1
)
FROM known
UNION ALL
SELECT node, NULL, NULL, NULL, NULL
FROM (SELECT node FROM calls UNION SELECT node FROM orphans)
ANTI JOIN known USING (node)
