-- Which agents ran the tools that a call asked for, by the tool's name.
-- Grain: one row per (waiting span of one call, name of a tool it asked for, agent's name). A tool has no row if an agent ran it that was
-- not open when the call began.
-- Inputs: waiting_calls, waiting, call_prompts, continued_calls, open_agents, agent_times, nodes, components, agent_spans.
-- Rule: a tool runs in the agent that asked for it, or in one right inside that: after the call (50 ms are tolerated), before its conversation
-- continues, and while one of those agents is open.
WITH asked AS MATERIALIZED (
    SELECT
        waiting_calls.node,
        waiting_calls.attempt,
        unnest(call_prompts.asks) AS tool_name,
        coalesce(waiting.end_ns, waiting.start_ns) AS from_ns,
        least(goes_on.start_ns, open_until.end_ns) AS until_ns
    FROM waiting_calls
    JOIN waiting ON waiting.node = waiting_calls.node
    JOIN call_prompts ON call_prompts.node = waiting_calls.call
    JOIN (
        SELECT open_agents.node, max(agent_times.end_ns) AS end_ns
        FROM open_agents
        JOIN agent_times ON agent_times.level = 1 AND agent_times.id = open_agents.agent_node
        GROUP BY open_agents.node
    ) AS open_until ON open_until.node = waiting_calls.node
    LEFT JOIN (
        SELECT continued_calls.earlier, min(nodes.start_ns) AS start_ns
        FROM continued_calls
        JOIN nodes ON nodes.node = continued_calls.node
        GROUP BY continued_calls.earlier
    ) AS goes_on ON goes_on.earlier = waiting_calls.call
    WHERE waiting_calls.prompt_key IS NOT NULL
),
runs AS MATERIALIZED (
    SELECT nodes.node, nodes.attempt, nodes.tool_name, nodes.start_ns, agents.agent, outer_one.agent AS outer_agent
    FROM nodes
    SEMI JOIN asked USING (attempt, tool_name)
    LEFT JOIN components USING (node)
    LEFT JOIN agent_spans AS agents ON agents.node = components.agent_node
    LEFT JOIN agent_spans AS outer_one ON outer_one.node = agents.outer_node
    WHERE nodes.op = 'tool'
),
ran AS MATERIALIZED (
    SELECT asked.node, asked.tool_name, runs.node AS run, open_agents.agent
    FROM asked
    JOIN runs
        ON runs.attempt = asked.attempt
        AND runs.tool_name = asked.tool_name
        AND runs.start_ns BETWEEN asked.from_ns - clock_tolerance_ns() AND asked.until_ns
    LEFT JOIN open_agents ON open_agents.node = asked.node AND open_agents.agent IN (runs.agent, runs.outer_agent)
)
SELECT DISTINCT node, tool_name, agent
FROM ran
ANTI JOIN (SELECT node, tool_name FROM ran WHERE agent IS NULL) AS elsewhere USING (node, tool_name)
