-- The agent of each waiting call, by the conversation that the call continues.
-- Grain: one row per waiting span with exactly one call, if its conversation tells its agent; `agent` is the name.
-- Inputs: continued_calls, components, agent_spans, prompted_agent, waiting, agent_times.
-- Rule: the agent of the previous call in the conversation, if that agent was open when this call began. Otherwise (after a handoff) the
-- agent that time and prompts tell. If nothing tells the agent of the previous calls, the one agent of the later ones.
WITH RECURSIVE
members AS MATERIALIZED (
    SELECT attempt, node, earlier, opening FROM continued_calls
    UNION
    SELECT attempt, opening, NULL, opening FROM continued_calls
),
calls AS MATERIALIZED (
    -- As ids tell it, else time and prompts.
    SELECT
        members.*,
        agent_spans.agent IS NOT NULL AS by_ids,
        coalesce(agent_spans.agent, prompted_agent.said_agent) AS agent,
        prompted_agent.node AS waits_as,
        waiting.start_ns
    FROM members
    LEFT JOIN components ON components.node = members.node
    LEFT JOIN agent_spans ON agent_spans.node = components.agent_node
    LEFT JOIN prompted_agent ON prompted_agent.call = members.node
    LEFT JOIN waiting ON waiting.node = prompted_agent.node
),
breaks AS (
    SELECT
        agent_times.attempt,
        agent_spans.agent,
        agent_times.id,
        agent_times.start_ns,
        agent_times.end_ns,
        coalesce(agent_times.start_ns > max(agent_times.end_ns) OVER before, true) AS begins
    FROM agent_times
    SEMI JOIN members USING (attempt)
    JOIN agent_spans ON agent_spans.node = agent_times.id
    WHERE agent_times.level = 1
    WINDOW before AS (
        PARTITION BY agent_times.attempt, agent_spans.agent
        ORDER BY agent_times.start_ns, agent_times.id
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    )
),
at_work AS MATERIALIZED (
    -- When any agent of a name was open.
    SELECT attempt, agent, min(start_ns) AS start_ns, max(end_ns) AS end_ns
    FROM (
        SELECT *, count_if(begins) OVER (PARTITION BY attempt, agent ORDER BY start_ns, id ROWS UNBOUNDED PRECEDING) AS part FROM breaks
    )
    GROUP BY attempt, agent, part
),
forward AS (
    SELECT node, agent FROM calls WHERE earlier IS NULL
    UNION
    SELECT calls.node, CASE WHEN NOT calls.by_ids AND at_work.agent IS NOT NULL THEN forward.agent ELSE calls.agent END
    FROM forward
    JOIN calls ON calls.earlier = forward.node
    LEFT JOIN at_work
        ON at_work.attempt = calls.attempt
        AND at_work.agent = forward.agent
        AND at_work.start_ns <= calls.start_ns
        AND at_work.end_ns >= calls.start_ns
),
followed AS MATERIALIZED (
    SELECT calls.*, forward.agent AS forward_agent FROM calls JOIN forward USING (node)
),
of_one AS (
    SELECT opening, min(forward_agent) AS agent
    FROM followed
    WHERE forward_agent IS NOT NULL
    GROUP BY opening
    HAVING count(DISTINCT forward_agent) = 1
)
SELECT followed.waits_as AS node, coalesce(followed.forward_agent, at_work.agent) AS agent
FROM followed
LEFT JOIN of_one ON of_one.opening = followed.opening AND followed.forward_agent IS NULL
LEFT JOIN at_work
    ON at_work.attempt = followed.attempt
    AND at_work.agent = of_one.agent
    AND at_work.start_ns <= followed.start_ns
    AND at_work.end_ns >= followed.start_ns
WHERE followed.waits_as IS NOT NULL AND NOT followed.by_ids AND coalesce(followed.forward_agent, at_work.agent) IS NOT NULL
