-- The spans whose agent is named, and the name.
-- Grain: one row per such span.
-- Inputs: nodes, llm_twins, tool_callers, user_names (node, agent_name: found by rules of the settings).
-- Rule: a span's own name goes first (by rules of the settings, then what ingest read by `agent_rules`). A call without a name takes that of
-- its twin, or, if no declared parent places it, that of the first tool it asked for. A tool without a name that lost its parent takes
-- that of the call that asked for it.
WITH own AS MATERIALIZED (
    SELECT nodes.node, coalesce(user_names.agent_name, nodes.agent_name) AS agent_name
    FROM nodes
    LEFT JOIN user_names USING (node)
    WHERE nodes.agent_name IS NOT NULL OR user_names.agent_name IS NOT NULL
),
by_others AS (
    SELECT 1 AS rank, llm_twins.kept AS node, own.node AS by_node, own.agent_name
    FROM llm_twins
    JOIN own USING (node)
    UNION ALL
    SELECT 2, tool_callers.call, own.node, own.agent_name
    FROM tool_callers
    JOIN own USING (node)
    WHERE tool_callers.call_lost
),
calls AS MATERIALIZED (
    FROM own
    UNION ALL
    SELECT by_others.node, min_by(by_others.agent_name, (by_others.rank, by_others.by_node))
    FROM by_others
    ANTI JOIN own USING (node)
    GROUP BY by_others.node
)
FROM calls
UNION ALL
SELECT tool_callers.node, calls.agent_name
FROM tool_callers
JOIN calls ON calls.node = tool_callers.call
ANTI JOIN own ON own.node = tool_callers.node
WHERE tool_callers.tool_lost
