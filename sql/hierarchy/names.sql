-- The spans whose agent is named, and the name.
-- Grain: one row per such span. Inputs: nodes, llm_twins, tool_callers, user_names (node, agent_name: found by rules of the
-- settings).
-- Rule: a span's own name first (rules of the settings, then what ingest read by `agent_rules`); a call without one goes
-- by its twin's, a tool without parent and name by that of the call that asked for it.
WITH own AS MATERIALIZED (
    SELECT nodes.node, coalesce(user_names.agent_name, nodes.agent_name) AS agent_name
    FROM nodes
    LEFT JOIN user_names USING (node)
    WHERE nodes.agent_name IS NOT NULL OR user_names.agent_name IS NOT NULL
),
calls AS MATERIALIZED (
    FROM own
    UNION ALL
    SELECT llm_twins.kept, min_by(own.agent_name, own.node)
    FROM llm_twins
    JOIN own USING (node)
    ANTI JOIN own AS named ON named.node = llm_twins.kept
    GROUP BY llm_twins.kept
)
FROM calls
UNION ALL
SELECT tool_callers.node, calls.agent_name
FROM tool_callers
JOIN calls ON calls.node = tool_callers.call
ANTI JOIN own ON own.node = tool_callers.node
