-- Calls that time gives to an inner agent while this agent has another call: one of them may be the outer agent's.
-- Grain: one row per waiting span of such a call.
-- Inputs: holding_agent, waiting_calls, nodes, components, agent_spans, llm_twins.
-- Rule: an agent normally waits for its call, so of two calls under way at once another agent makes one. Only the gateway's own
-- records count, since they share one clock: an agent's record of a call may be a second record of the same call.
WITH calls AS (
    SELECT holding_agent.node, holding_agent.parent AS agent_node, nodes.start_ns, nodes.end_ns, true AS waits
    FROM holding_agent
    JOIN agent_spans ON agent_spans.node = holding_agent.parent AND agent_spans.outer_node IS NOT NULL
    JOIN waiting_calls ON waiting_calls.node = holding_agent.node
    JOIN nodes ON nodes.node = waiting_calls.call AND nodes.policy IS NOT NULL
    WHERE holding_agent.method = 'time'
    UNION ALL
    SELECT nodes.node, components.agent_node, nodes.start_ns, nodes.end_ns, false
    FROM nodes
    JOIN components USING (node)
    SEMI JOIN (SELECT parent AS agent_node FROM holding_agent WHERE method = 'time') AS held USING (agent_node)
    ANTI JOIN llm_twins ON llm_twins.node = nodes.node
    WHERE nodes.op = 'llm' AND nodes.policy IS NOT NULL
)
SELECT node
FROM (
    SELECT
        node,
        waits,
        start_ns < max(end_ns) OVER (in_order ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) OR lead(start_ns) OVER in_order < end_ns AS at_once
    FROM calls
    WINDOW in_order AS (PARTITION BY agent_node ORDER BY start_ns, node)
)
WHERE waits AND at_once
