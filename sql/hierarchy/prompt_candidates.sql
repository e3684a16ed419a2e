-- Whose each prompt may be of which ids tell nothing.
-- Grain: one row per (attempt, prompt, agent name). Inputs: waiting_calls, prompt_agents, enclosing_agent, open_agents,
-- agent_spans.
-- Rule: the agents by whose time calls with it are placed; where time places none of them, those that were open at every one: where
-- none of them was the innermost one each time, those around others too.
WITH open_keys AS MATERIALIZED (
    SELECT waiting_calls.attempt, prompt_key, waiting_calls.node
    FROM waiting_calls
    ANTI JOIN prompt_agents USING (attempt, prompt_key)
    WHERE prompt_key IS NOT NULL
),
votes AS MATERIALIZED (
    SELECT DISTINCT open_keys.attempt, open_keys.prompt_key, coalesce(enclosing_agent.agent, agent_spans.agent) AS agent
    FROM open_keys
    JOIN enclosing_agent USING (node)
    LEFT JOIN agent_spans ON agent_spans.node = enclosing_agent.parent
    WHERE enclosing_agent.method <> 'ambiguous'
),
unplaced AS MATERIALIZED (
    SELECT open_keys.*, count(*) OVER (PARTITION BY attempt, prompt_key) AS calls
    FROM open_keys
    JOIN enclosing_agent USING (node)
    ANTI JOIN votes USING (attempt, prompt_key)
),
always_open AS (
    SELECT
        unplaced.attempt,
        unplaced.prompt_key,
        open_agents.agent,
        count(DISTINCT unplaced.node) FILTER (NOT open_agents.around) = unplaced.calls AS innermost
    FROM unplaced
    JOIN open_agents USING (node)
    GROUP BY unplaced.attempt, unplaced.prompt_key, open_agents.agent, unplaced.calls
    HAVING count(DISTINCT unplaced.node) = unplaced.calls
)
FROM votes
UNION ALL
SELECT attempt, prompt_key, agent
FROM always_open
QUALIFY innermost OR NOT bool_or(innermost) OVER (PARTITION BY attempt, prompt_key)
