-- The agents that were open when a call began that time leaves to several, or to one whose prompt it is not.
-- Grain: one row per (waiting span, open agent's span). `begun` is false where it opened within the 50 ms after. Asked of calls
-- with a prompt alone. Inputs: waiting_calls, waiting, agent_times, agent_spans.
-- Rule: without those around another one that is open, as of nested agents the inner one has the call; but with them where it is
-- known that they work meanwhile, or the call outlives the inner one.
WITH held AS MATERIALIZED (
    SELECT
        waiting.node,
        waiting.attempt,
        times.id,
        times.up,
        times.start_ns <= waiting.start_ns AS begun,
        times.contested OR coalesce(waiting.end_ns - clock_tolerance_ns() > times.end_ns, false) AS contested
    FROM waiting_calls
    JOIN waiting USING (node)
    JOIN agent_times AS times
        ON times.attempt = waiting.attempt
        AND times.level = 1
        AND times.start_ns <= waiting.start_ns + clock_tolerance_ns()
        AND times.end_ns >= waiting.start_ns
    WHERE waiting_calls.prompt_key IS NOT NULL
)
SELECT held.node, held.attempt, held.id AS agent_node, agent_spans.agent, held.begun
FROM held
JOIN agent_spans ON agent_spans.node = held.id
ANTI JOIN held AS inner_one ON inner_one.node = held.node AND inner_one.up = held.id AND inner_one.begun AND NOT inner_one.contested
