-- Which agent each waiting span is of, by time and by what its calls were prompted with.
-- Grain: one row per waiting span of which either tells anything, as in `enclosing_agent`. `method`: that of time where prompts
-- say the same or nothing; `content` where they decide; `ambiguous`. `parent` is NULL where the agent's own span is lost, or
-- several are open. Inputs: enclosing_agent, waiting, waiting_calls, prompt_owners, prompt_agents, prompt_candidates, open_agents,
-- agent_times, agent_spans, lossy_attempts.
-- Rule: a prompt that is one agent's tells whose the call is, whoever's time holds it, unless an agent may share it: one
-- that was open, of which no other prompt is known, not even from earlier epochs. A prompt that is nobody's contradicts time
-- where that agent has another one, or another one in its time is nobody's either. Where an attempt has lost a span that may
-- have been an agent's, time alone tells nothing of its calls.
WITH timed AS MATERIALIZED (
    SELECT
        coalesce(waiting_calls.node, enclosing_agent.node) AS node,
        waiting_calls.attempt,
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
        SELECT attempt, agent, prompt_key FROM prompt_candidates ANTI JOIN prompt_owners USING (attempt, prompt_key)
    )
    GROUP BY ALL
),
sharing AS (
    -- Who else may have been prompted so.
    SELECT timed.node, timed.attempt, timed.prompt_key, open_agents.agent
    FROM timed
    JOIN open_agents USING (node)
    ANTI JOIN prompt_agents ON prompt_agents.attempt = timed.attempt AND prompt_agents.prompt_key = timed.prompt_key
    WHERE open_agents.begun AND timed.method = 'ambiguous' AND open_agents.agent <> timed.owner AND NOT timed.known
    UNION ALL
    SELECT node, attempt, prompt_key, time_agent FROM timed WHERE time_agent <> owner AND NOT known
),
shared AS (
    SELECT DISTINCT sharing.node
    FROM sharing
    LEFT JOIN prompted ON prompted.attempt = sharing.attempt AND prompted.agent = sharing.agent
    WHERE prompted.prompts IS NULL OR (prompted.prompts = 1 AND prompted.prompt_key = sharing.prompt_key)
),
judged AS MATERIALIZED (
    SELECT
        timed.*,
        CASE
            WHEN NOT has_calls THEN method
            WHEN shared.node IS NOT NULL THEN 'ambiguous'
            WHEN owner IS NOT NULL AND (owner IS DISTINCT FROM time_agent OR method = 'ambiguous') THEN 'content'
            WHEN owner IS NOT NULL THEN method
            WHEN method = 'ambiguous' OR method IS NULL THEN method
            WHEN lossy.attempt IS NOT NULL THEN 'ambiguous'
            WHEN by_ids.agent IS NOT NULL THEN method
            WHEN timed.prompt_key IS NOT NULL AND prompted.prompts > 1 THEN 'ambiguous'
            ELSE method
        END AS verdict
    FROM timed
    LEFT JOIN prompt_agents AS by_ids
        ON by_ids.attempt = timed.attempt AND by_ids.prompt_key = timed.prompt_key AND by_ids.agent = timed.time_agent
    LEFT JOIN prompted ON prompted.attempt = timed.attempt AND prompted.agent = timed.time_agent
    LEFT JOIN lossy_attempts AS lossy ON lossy.attempt = timed.attempt
    LEFT JOIN shared ON shared.node = timed.node
),
owners_open AS (
    -- The spans of that agent that were open when the call began.
    SELECT
        judged.node,
        count(*) AS spans,
        any_value(times.id) AS span,
        CASE WHEN count(DISTINCT agent_spans.agent_path) = 1 THEN any_value(agent_spans.agent_path) END AS agent_path
    FROM judged
    JOIN waiting ON waiting.node = judged.node
    JOIN agent_spans ON agent_spans.attempt = judged.attempt AND agent_spans.agent = judged.owner
    JOIN agent_times AS times
        ON times.level = 1
        AND times.id = agent_spans.node
        AND times.start_ns <= waiting.start_ns + clock_tolerance_ns()
        AND times.end_ns >= waiting.start_ns
    WHERE judged.verdict = 'content'
    GROUP BY judged.node
)
SELECT
    judged.node,
    judged.verdict AS method,
    CASE judged.verdict WHEN 'content' THEN CASE owners_open.spans WHEN 1 THEN owners_open.span END WHEN 'ambiguous' THEN NULL ELSE judged.parent END AS parent,
    CASE judged.verdict WHEN 'content' THEN judged.owner WHEN 'ambiguous' THEN NULL ELSE judged.agent END AS agent,
    CASE judged.verdict
        WHEN 'content' THEN coalesce(owners_open.agent_path, judged.owner)
        WHEN 'ambiguous' THEN NULL
        ELSE judged.agent_path
    END AS agent_path,
    CASE WHEN judged.verdict = 'content' THEN coalesce(owners_open.spans, 0) ELSE judged.candidates END AS candidates
FROM judged
LEFT JOIN owners_open ON owners_open.node = judged.node
WHERE judged.verdict IS NOT NULL
