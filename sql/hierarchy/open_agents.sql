-- The agents that were open when a call began, for calls that time gives to several agents, or to one that has another prompt.
-- Grain: one row per (waiting span, open agent's span), for spans that are calls with a prompt. `begun` is false if the agent opened
-- within the 50 ms after. `around`: the agent is around another open one, and the inner one has the call; false if it is known to work at
-- the same time, if the call outlives the inner one, or if the call is one of two at once.
-- Inputs: waiting_calls, waiting, calls_at_once, agent_times, agent_spans.
WITH held AS MATERIALIZED (
    SELECT
        waiting.node,
        waiting.attempt,
        times.id,
        times.up,
        times.start_ns <= waiting.start_ns AS begun,
        times.contested OR calls_at_once.node IS NOT NULL OR coalesce(waiting.end_ns - clock_tolerance_ns() > times.end_ns, false) AS contested
    FROM waiting_calls
    JOIN waiting USING (node)
    LEFT JOIN calls_at_once USING (node)
    JOIN agent_times AS times
        ON times.attempt = waiting.attempt
        AND times.level = 1
        AND open_at(times.start_ns, times.end_ns, waiting.start_ns)
    WHERE waiting_calls.prompt_key IS NOT NULL
)
SELECT held.node, held.attempt, held.id AS agent_node, agent_spans.agent, held.begun, inner_ones.node IS NOT NULL AS around
FROM held
JOIN agent_spans ON agent_spans.node = held.id
LEFT JOIN (SELECT DISTINCT node, up FROM held WHERE begun AND NOT contested AND up IS NOT NULL) AS inner_ones
    ON inner_ones.node = held.node AND inner_ones.up = held.id
