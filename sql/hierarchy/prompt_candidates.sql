-- The agents that may have a prompt for which ids tell no agent.
-- Grain: one row per (attempt, prompt, agent name).
-- Inputs: waiting_calls, prompt_agents, enclosing_agent, open_agents, agent_spans, tool_runners, filled_runs.
-- Rule: `open`: the agents that were open at every call with the prompt. If at least one agent ran the tools that the calls asked for, those
-- that did not are left out. `likely`: the first of these that any open agent meets:
-- 1. its time places a call with the prompt;
-- 2. the calls with the prompt fill each of its runs, within 50 ms or as nearly as others;
-- 3. it called in each of its several runs (an agent that was open all the time would do so by chance);
-- 4. it was the innermost one each time.
-- `by_time`: how it looks by time alone: the agents by whose time a call is placed, whether open at the other calls or not; else the likely ones.
WITH open_keys AS MATERIALIZED (
    SELECT attempt, prompt_key, node, count(*) OVER (PARTITION BY attempt, prompt_key) AS calls
    FROM waiting_calls
    ANTI JOIN prompt_agents USING (attempt, prompt_key)
    WHERE prompt_key IS NOT NULL
),
idle AS (
    -- Others ran what the call asked for.
    SELECT open_agents.node, open_agents.agent
    FROM (SELECT DISTINCT node, tool_name FROM tool_runners) AS asked
    JOIN open_agents USING (node)
    ANTI JOIN tool_runners
        ON tool_runners.node = asked.node AND tool_runners.tool_name = asked.tool_name AND tool_runners.agent = open_agents.agent
),
runs AS (
    SELECT attempt, agent, count(*) AS runs FROM agent_spans WHERE runs GROUP BY ALL
),
held AS (
    SELECT
        open_keys.*,
        open_agents.* EXCLUDE (node, attempt),
        count(*) OVER (PARTITION BY open_keys.attempt, prompt_key, agent_node) = calls AS in_one_run
    FROM open_keys
    JOIN open_agents USING (node)
),
filled AS (
    SELECT attempt, prompt_key, agent
    FROM (SELECT attempt, prompt_key, agent, count(*) AS runs, max(off_ns) AS off_ns FROM filled_runs GROUP BY ALL)
    JOIN runs USING (attempt, agent, runs)
    WINDOW same_prompt AS (PARTITION BY attempt, prompt_key)
    QUALIFY min(off_ns) OVER same_prompt <= clock_tolerance_ns() AND off_ns <= min(off_ns) OVER same_prompt + clock_tolerance_ns()
),
possible AS MATERIALIZED (
    SELECT
        attempt,
        prompt_key,
        agent,
        count(DISTINCT node) FILTER (NOT around) = any_value(calls) AS innermost,
        count(DISTINCT agent_node) AS called_in,
        bool_or(in_one_run) AS in_one_run
    FROM held
    ANTI JOIN idle USING (node, agent)
    GROUP BY attempt, prompt_key, agent
    HAVING count(DISTINCT node) = any_value(calls)
),
votes AS (
    SELECT DISTINCT open_keys.attempt, open_keys.prompt_key, coalesce(enclosing_agent.agent, agent_spans.agent) AS agent
    FROM open_keys
    JOIN enclosing_agent USING (node)
    LEFT JOIN agent_spans ON agent_spans.node = enclosing_agent.parent
    WHERE enclosing_agent.method <> 'ambiguous'
),
ranked AS (
    SELECT
        attempt,
        prompt_key,
        agent,
        possible.agent IS NOT NULL AS open,
        votes.agent IS NOT NULL AS placed,
        CASE
            WHEN votes.agent IS NOT NULL THEN 1
            WHEN filled.agent IS NOT NULL THEN 2
            WHEN possible.called_in = runs.runs AND NOT possible.in_one_run THEN 3
            WHEN possible.innermost THEN 4
            ELSE 5
        END AS rank
    FROM possible
    JOIN runs USING (attempt, agent)
    LEFT JOIN filled USING (attempt, prompt_key, agent)
    FULL JOIN votes USING (attempt, prompt_key, agent)
)
SELECT
    attempt,
    prompt_key,
    agent,
    open,
    open AND rank = min(rank) FILTER (open) OVER same_prompt AS likely,
    CASE WHEN bool_or(placed) OVER same_prompt THEN placed ELSE likely END AS by_time
FROM ranked
WINDOW same_prompt AS (PARTITION BY attempt, prompt_key)
