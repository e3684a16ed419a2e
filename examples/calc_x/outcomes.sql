-- What became of each held-out problem in each evaluation of a run, and whether the calculator was used.
-- Grain: one row per rollout of an evaluation that counts. Inputs: rollouts, calls, tool_calls. Parameter: run.
-- `unit` is the problem: what an interval is over. `kind` is how many calculations its solution has.
-- Rule: a call that means to use the calculator names it in its reply; it is well formed where its reply has a tool call and
-- the tool did not fail. `uses_result`: the answer is what one of the rollout's tool calls gave; NULL without an answer. AutoGen's
-- spans of tools have no results; they are in the messages of the attempt's last call.
WITH asked AS (
    SELECT
        epoch, rollout_id, attempt_id, reward, task ->> 'id' AS id, (task ->> 'steps')::INTEGER AS steps,
        regexp_extract_all(output, '###\s*ANSWER:\s*\$?(-?[\d,]+(?:\.\d+)?)', 1, 'i')[-1] AS answer
    FROM rollouts
    WHERE run = $run AND mode = 'evaluate' AND state = 'counts'
),
meant AS (
    SELECT attempt_id, count(*) AS calls
    FROM calls
    WHERE twin_of IS NULL AND (contains(output_messages, 'tool_call') OR contains(output_messages, 'calculate'))
    GROUP BY attempt_id
),
computed AS (
    SELECT attempt_id, count(*) FILTER (NOT failed) AS well FROM tool_calls GROUP BY attempt_id
),
returned AS (
    SELECT attempt_id, [try_cast(m.content AS DOUBLE) FOR m IN messages IF m.role = 'tool'] AS results
    FROM (
        SELECT
            attempt_id,
            from_json(arg_max(input_messages, started), '[{"role": "VARCHAR", "content": "VARCHAR"}]') AS messages
        FROM calls
        WHERE twin_of IS NULL
        GROUP BY attempt_id
    )
)
SELECT
    asked.epoch,
    asked.id AS unit,
    asked.id,
    CASE WHEN steps > 3 THEN 'problems of 4 calculations or more' ELSE format('problems of {} calculations', steps) END AS kind,
    CASE WHEN reward >= 1 THEN 'right' WHEN answer IS NULL THEN 'no answer' ELSE 'wrong' END AS outcome,
    meant.calls IS NOT NULL AS means_to_calculate,
    least(1, coalesce(computed.well, 0) / meant.calls) AS well_formed,
    CASE WHEN answer IS NOT NULL THEN coalesce(list_contains(results, try_cast(replace(answer, ',', '') AS DOUBLE)), false) END AS uses_result
FROM asked
LEFT JOIN meant USING (attempt_id)
LEFT JOIN computed USING (attempt_id)
LEFT JOIN returned USING (attempt_id)
ORDER BY epoch, id
