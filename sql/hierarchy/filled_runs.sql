-- The runs of agents that the calls with one prompt fill: the first of them begins as the run does, the last ends as it does.
-- Grain: one row per (prompt, agent's span). `off_ns` is the larger of the two differences. Inputs: waiting_calls, waiting, open_agents,
-- agent_times, lossy_attempts.
-- Rule: an agent begins with a call and ends after one. Within 50 ms a run is filled; up to 100 ms are told, since a run that is
-- nearly as well filled may be the one where clocks are off. None by calls that time gives to an agent inside it, and none in an attempt
-- in which a span was lost that may have been an agent's.
SELECT
    waiting_calls.attempt,
    waiting_calls.prompt_key,
    open_agents.agent,
    open_agents.agent_node,
    any_value(times.start_ns) AS start_ns,
    greatest(
        abs(min(waiting.start_ns)::HUGEINT - any_value(times.start_ns)), abs(max(waiting.end_ns)::HUGEINT - any_value(times.end_ns))
    ) AS off_ns
FROM waiting_calls
ANTI JOIN lossy_attempts USING (attempt)
JOIN waiting USING (node)
JOIN open_agents USING (node)
JOIN agent_times AS times ON times.level = 1 AND times.id = open_agents.agent_node
GROUP BY waiting_calls.attempt, waiting_calls.prompt_key, open_agents.agent, open_agents.agent_node
HAVING bool_and(NOT open_agents.around) AND off_ns <= 2 * clock_tolerance_ns()
