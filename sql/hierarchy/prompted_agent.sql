-- The agent that time and prompts tell for each waiting span, before conversations are looked at (`evident_agent`).
-- Grain: one row per waiting span that has calls, or that lies in an agent's time. `verdict` is a method, as in `evident_agent`; NULL if nothing
-- tells. `said_agent` is the agent by that verdict.
-- Inputs: enclosing_agent, waiting_calls, prompt_owners, prompt_agents, prompt_candidates, open_agents, filled_runs, waiting, agent_times,
-- agent_spans, lossy_attempts.
-- Rule: a prompt with one owner tells the agent, whoever's time holds the call, unless another agent may share the prompt: one that was open
-- and has no other known prompt, not even from earlier epochs. Agents that were open before the owner's run began do not count if the calls
-- with the prompt fill that run. A prompt without an owner contradicts time if the agent by time has another prompt, or if another prompt
-- in its time has no owner either. If the attempt lost a span that may have been an agent's, time alone tells nothing of its calls.
WITH timed AS MATERIALIZED (
    SELECT
        coalesce(waiting_calls.node, enclosing_agent.node) AS node,
        waiting_calls.attempt,
        waiting_calls.call,
        waiting_calls.prompt_key,
        waiting_calls.node IS NOT NULL AS has_calls,
        enclosing_agent.* EXCLUDE (node),
        coalesce(enclosing_agent.agent, agent_spans.agent) AS time_agent,
        owners.agent AS owner,
        coalesce(owners.known, false) AS known
    FROM enclosing_agent
    FULL JOIN waiting_calls ON waiting_calls.node = enclosing_agent.node
    LEFT JOIN agent_spans ON agent_spans.node = enclosing_agent.parent
    LEFT JOIN prompt_owners AS owners ON owners.attempt = waiting_calls.attempt AND owners.prompt_key = waiting_calls.prompt_key
),
prompted AS MATERIALIZED (
    -- The prompts that each agent has or may have: by ids, as it is taken, or by time.
    SELECT attempt, agent, count(DISTINCT prompt_key) AS prompts, min(prompt_key) AS prompt_key
    FROM (
        SELECT attempt, agent, prompt_key FROM prompt_agents
        UNION
        SELECT attempt, agent, prompt_key FROM prompt_owners
        UNION
        SELECT attempt, agent, prompt_key FROM prompt_candidates ANTI JOIN prompt_owners USING (attempt, prompt_key) WHERE by_time
    )
    GROUP BY ALL
),
owner_open AS MATERIALIZED (
    -- Asked only where it decides.
    SELECT DISTINCT timed.node
    FROM timed
    ANTI JOIN lossy_attempts ON lossy_attempts.attempt = timed.attempt
    JOIN waiting USING (node)
    JOIN agent_spans ON agent_spans.attempt = timed.attempt AND agent_spans.agent = timed.owner
    JOIN agent_times AS times
        ON times.level = 1
        AND times.id = agent_spans.node
        AND open_at(times.start_ns, times.end_ns, waiting.start_ns)
    WHERE (timed.owner IS DISTINCT FROM timed.time_agent OR timed.method = 'ambiguous') AND NOT timed.known
),
in_filled_runs AS (
    SELECT timed.node, filled_runs.start_ns
    FROM timed
    JOIN open_agents ON open_agents.node = timed.node AND open_agents.agent = timed.owner
    JOIN filled_runs
        ON filled_runs.prompt_key = timed.prompt_key
        AND filled_runs.agent_node = open_agents.agent_node
        AND filled_runs.off_ns <= clock_tolerance_ns()
),
sharing AS (
    -- Who else may have been prompted so.
    SELECT timed.node, timed.attempt, timed.prompt_key, open_agents.agent
    FROM timed
    JOIN open_agents USING (node)
    JOIN agent_times AS times ON times.level = 1 AND times.id = open_agents.agent_node
    ANTI JOIN in_filled_runs
        ON in_filled_runs.node = timed.node AND times.start_ns + clock_tolerance_ns() < in_filled_runs.start_ns
    WHERE open_agents.begun AND NOT open_agents.around AND timed.method = 'ambiguous' AND open_agents.agent <> timed.owner AND NOT timed.known
    UNION ALL
    SELECT node, attempt, prompt_key, time_agent FROM timed WHERE time_agent <> owner AND NOT known
),
shared AS (
    SELECT DISTINCT sharing.node
    FROM sharing
    LEFT JOIN prompted ON prompted.attempt = sharing.attempt AND prompted.agent = sharing.agent
    WHERE prompted.prompts IS NULL OR (prompted.prompts = 1 AND prompted.prompt_key = sharing.prompt_key)
)
SELECT
    timed.* EXCLUDE (method, prompt_key, has_calls, time_agent, known),
    CASE
        WHEN NOT has_calls THEN method
        WHEN shared.node IS NOT NULL THEN 'ambiguous'
        WHEN owner IS NOT NULL AND (owner IS DISTINCT FROM time_agent OR method = 'ambiguous')
            THEN CASE WHEN owner_open.node IS NOT NULL OR known OR lossy.attempt IS NOT NULL THEN 'content' ELSE 'ambiguous' END
        WHEN owner IS NOT NULL THEN method
        WHEN method = 'ambiguous' OR method IS NULL THEN method
        WHEN lossy.attempt IS NOT NULL THEN 'ambiguous'
        WHEN same.agent IS NOT NULL THEN method
        WHEN timed.prompt_key IS NOT NULL AND prompted.prompts > 1 THEN 'ambiguous'
        ELSE method
    END AS verdict,
    CASE verdict WHEN 'content' THEN owner WHEN 'ambiguous' THEN NULL ELSE time_agent END AS said_agent
FROM timed
LEFT JOIN prompt_agents AS same
    ON same.attempt = timed.attempt AND same.prompt_key = timed.prompt_key AND same.agent = timed.time_agent
LEFT JOIN prompted ON prompted.attempt = timed.attempt AND prompted.agent = timed.time_agent
LEFT JOIN lossy_attempts AS lossy ON lossy.attempt = timed.attempt
LEFT JOIN shared ON shared.node = timed.node
LEFT JOIN owner_open ON owner_open.node = timed.node
