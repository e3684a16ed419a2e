-- The agent of each waiting span, by time, by the prompts of its calls, and by the conversations that these continue.
-- Grain: one row per waiting span for which at least one of the three tells something, as in `enclosing_agent`. `method` is that of time if
-- prompts and conversations agree or tell nothing, `content` if they decide, or `ambiguous`. `parent` is NULL if the agent's own span was
-- lost or several are open.
-- Inputs: prompted_agent, conversation_agents, waiting, agent_times, agent_spans.
-- Rule: the conversation decides before time and prompts do.
WITH judged AS MATERIALIZED (
    SELECT
        prompted_agent.* REPLACE (
            coalesce(conversation_agents.agent, prompted_agent.owner) AS owner,
            CASE
                WHEN conversation_agents.agent IS DISTINCT FROM prompted_agent.said_agent AND conversation_agents.agent IS NOT NULL
                    THEN 'content'
                ELSE prompted_agent.verdict
            END AS verdict
        )
    FROM prompted_agent
    LEFT JOIN conversation_agents USING (node)
),
content AS MATERIALIZED (
    -- First, so that DuckDB knows how few there are.
    SELECT judged.node, judged.attempt, judged.owner, waiting.start_ns
    FROM judged
    JOIN waiting USING (node)
    WHERE judged.verdict = 'content'
),
owners_open AS (
    -- The spans of that agent that were open when the call began.
    SELECT
        content.node,
        count(*) AS spans,
        any_value(times.id) AS span,
        CASE WHEN count(DISTINCT agent_spans.agent_path) = 1 THEN any_value(agent_spans.agent_path) END AS agent_path
    FROM content
    JOIN agent_spans ON agent_spans.attempt = content.attempt AND agent_spans.agent = content.owner
    JOIN agent_times AS times
        ON times.level = 1
        AND times.id = agent_spans.node
        AND open_at(times.start_ns, times.end_ns, content.start_ns)
    GROUP BY content.node
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
