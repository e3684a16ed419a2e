-- Which call asked for which tool run. If either of the two lost its parent, the other tells its place.
-- Grain: one row per tool span that exactly one LLM call of its attempt (twins are one) asked for, by its tool call id. `call_lost`: no record
-- of the call declares a parent that is in the attempt; `tool_lost`: the tool does not.
-- Inputs: nodes, spans, user_names, declared, tool_requests, llm_twins, clocks.
-- Rule: the agent that runs a tool need not have asked for it. So a tool tells the place of a call that lost its parent only if the agent that
-- ran the tool began before the call (50 ms are tolerated, but not the whole call).
-- Some models count their ids from 0 in every conversation. So a call did not ask for a tool with another name or other arguments, as far as
-- both are recorded; if several calls asked under one id, both have to be equal. An id decides nothing if tools of several agents have it, or
-- if the tool ran before the call. A tool that names another agent than the one it runs in hands over to that agent, and tells nothing of
-- who asked.
WITH RECURSIVE
records AS MATERIALIZED (
    SELECT kept AS call, node FROM llm_twins
    UNION
    SELECT kept, kept FROM llm_twins
),
tools AS MATERIALIZED (
    SELECT
        nodes.node,
        nodes.attempt,
        nodes.tool_call_key,
        nodes.tool_name,
        nodes.start_ns,
        coalesce(user_names.agent_name, nodes.agent_name) AS agent_name,
        declared.parent,
        CASE WHEN json_valid(spans.tool_arguments) THEN json(spans.tool_arguments) END AS arguments
    FROM nodes
    SEMI JOIN tool_requests USING (tool_call_key)
    JOIN spans USING (record_offset, record_index)
    LEFT JOIN user_names USING (node)
    LEFT JOIN declared USING (node)
    WHERE nodes.op = 'tool'
),
runs AS MATERIALIZED (
    SELECT tools.* EXCLUDE (arguments), tool_requests.call
    FROM tools
    JOIN tool_requests USING (tool_call_key)
    WHERE tool_requests.calls = 1
        AND coalesce(tool_requests.tool_name = tools.tool_name, true)
        -- A framework may add arguments, or write them in a way of its own: then nothing is known.
        AND NOT coalesce(
            len(json_keys(tool_requests.arguments)) > 0
                AND list_has_all(json_keys(tools.arguments), json_keys(tool_requests.arguments))
                AND NOT json_contains(tools.arguments, tool_requests.arguments),
            false
        )
    UNION ALL
    SELECT tools.* EXCLUDE (arguments), alike.call
    FROM tools
    JOIN (
        SELECT tool_call_key, tool_name, arguments, min(call) AS call
        FROM tool_requests
        WHERE calls > 1
        GROUP BY ALL
        HAVING count(*) = 1
    ) AS alike USING (tool_call_key, tool_name, arguments)
),
named AS MATERIALIZED (
    SELECT nodes.node, coalesce(user_names.agent_name, nodes.agent_name) AS agent_name
    FROM nodes
    SEMI JOIN runs USING (attempt)
    LEFT JOIN user_names USING (node)
    WHERE nodes.agent_name IS NOT NULL OR user_names.agent_name IS NOT NULL
),
parents AS MATERIALIZED (
    -- Nobody's, where no tool was asked for.
    FROM declared WHERE EXISTS (FROM runs)
),
above AS (
    -- From each tool's parent up to the first span that has a name, and on while the names are the same.
    SELECT runs.parent AS start, runs.parent AS node, named.agent_name, 0 AS unnamed
    FROM (SELECT DISTINCT parent FROM runs WHERE parent IS NOT NULL) AS runs
    LEFT JOIN named ON named.node = runs.parent
    UNION
    SELECT
        above.start,
        parents.parent,
        coalesce(above.agent_name, named.agent_name),
        CASE WHEN above.agent_name IS NOT NULL AND named.node IS NULL THEN above.unnamed + 1 ELSE 0 END
    FROM above
    JOIN parents USING (node)
    LEFT JOIN named ON named.node = parents.parent
    WHERE coalesce(named.agent_name = above.agent_name, true) AND above.unnamed < 8
),
agents AS MATERIALIZED (
    -- A tool's own start says nothing of its agent's.
    SELECT
        above.start,
        any_value(above.agent_name) AS agent_name,
        min(coalesce(nodes.start_ns, -1)) FILTER (named.node IS NOT NULL AND nodes.op <> 'tool') AS start_ns
    FROM above
    JOIN nodes USING (node)
    LEFT JOIN named USING (node)
    WHERE above.agent_name IS NOT NULL
    GROUP BY above.start
),
shared AS (
    -- Of two records of one run, one in the other, the outer one says whose it is.
    SELECT runs.call, runs.tool_call_key
    FROM runs
    LEFT JOIN agents ON agents.start = runs.parent
    ANTI JOIN runs AS outer_one ON outer_one.node = runs.parent AND outer_one.tool_call_key = runs.tool_call_key
    GROUP BY runs.call, runs.tool_call_key
    HAVING count(DISTINCT coalesce(runs.agent_name, agents.agent_name)) > 1
),
callers AS MATERIALIZED (
    -- Every record of every call that asked.
    SELECT runs.call, coalesce(records.node, runs.call) AS node
    FROM (SELECT DISTINCT call FROM runs) AS runs
    LEFT JOIN records USING (call)
),
placed AS (
    SELECT callers.call AS node
    FROM callers
    JOIN declared USING (node)
    ANTI JOIN callers AS same_call ON same_call.call = callers.call AND same_call.node = declared.parent
),
began AS (
    SELECT
        callers.call,
        min(coalesce(nodes.start_ns, nodes.end_ns) - CASE WHEN nodes.policy IS NOT NULL THEN coalesce(clocks.ahead_ns, 0) ELSE 0 END) AS start_ns,
        max(coalesce(nodes.end_ns, nodes.start_ns) - CASE WHEN nodes.policy IS NOT NULL THEN coalesce(clocks.ahead_ns, 0) ELSE 0 END) AS end_ns
    FROM callers
    JOIN nodes USING (node)
    LEFT JOIN clocks USING (attempt)
    GROUP BY callers.call
)
SELECT runs.node, runs.call, placed.node IS NULL AS call_lost, runs.parent IS NULL AS tool_lost
FROM runs
ANTI JOIN shared USING (call, tool_call_key)
JOIN began USING (call)
LEFT JOIN agents ON agents.start = runs.parent
LEFT JOIN (SELECT DISTINCT node FROM placed) AS placed ON placed.node = runs.call
WHERE (placed.node IS NULL OR runs.parent IS NULL)
    AND coalesce(runs.start_ns >= began.start_ns - clock_tolerance_ns(), true)
    AND coalesce(runs.agent_name = agents.agent_name, true)
    AND (placed.node IS NOT NULL OR coalesce(agents.start_ns <= least(began.start_ns + clock_tolerance_ns(), began.end_ns), true))
