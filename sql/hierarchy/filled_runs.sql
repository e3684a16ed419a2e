-- Agents' runs that the calls with one prompt fill: the first call begins when the run begins, the last one ends when it ends.
-- Grain: one row per (prompt, agent's span). `off_ns` is the larger of the two differences.
-- Inputs: waiting_calls, waiting, open_agents, agent_times, prompt_keys, components, agent_spans, nodes, clocks, lossy_attempts.
-- Rule: an agent begins with a call and ends after one. The calls that count are the agent's by ids, and those that began while it was open.
-- A run is filled if both ends differ by at most 50 ms. Runs that differ by up to 100 ms have a row too, because clocks differ and one of
-- them may be the run that the calls fill. Calls that time gives to an agent inside this one do not count, and attempts in which a span
-- that may have been an agent's was lost have no rows.
WITH calls AS (
    SELECT waiting_calls.attempt, waiting_calls.prompt_key, open_agents.agent, open_agents.agent_node, open_agents.around, waiting.start_ns, waiting.end_ns
    FROM waiting_calls
    JOIN waiting USING (node)
    JOIN open_agents USING (node)
    UNION ALL
    SELECT
        prompt_keys.attempt,
        prompt_keys.prompt_key,
        agent_spans.agent,
        agent_spans.node,
        false,
        nodes.start_ns - CASE WHEN nodes.policy IS NOT NULL THEN coalesce(clocks.ahead_ns, 0) ELSE 0 END,
        greatest(nodes.end_ns, nodes.start_ns) - CASE WHEN nodes.policy IS NOT NULL THEN coalesce(clocks.ahead_ns, 0) ELSE 0 END
    FROM prompt_keys
    JOIN components USING (node)
    JOIN agent_spans ON agent_spans.node = components.agent_node
    JOIN nodes ON nodes.node = prompt_keys.node
    LEFT JOIN clocks ON clocks.attempt = prompt_keys.attempt
    WHERE nodes.start_ns IS NOT NULL
)
SELECT
    calls.attempt,
    calls.prompt_key,
    calls.agent,
    calls.agent_node,
    any_value(times.start_ns) AS start_ns,
    greatest(
        abs(min(calls.start_ns)::HUGEINT - any_value(times.start_ns)), abs(max(calls.end_ns)::HUGEINT - any_value(times.end_ns))
    ) AS off_ns
FROM calls
ANTI JOIN lossy_attempts USING (attempt)
JOIN agent_times AS times ON times.level = 1 AND times.id = calls.agent_node
GROUP BY calls.attempt, calls.prompt_key, calls.agent, calls.agent_node
HAVING bool_and(NOT calls.around) AND off_ns <= 2 * clock_tolerance_ns()
