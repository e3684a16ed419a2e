-- Every tool call, with arguments, result, whether it failed, and the agent that made it.
-- Grain: one row per tool call; one that was recorded twice is one. Inputs: spans, attempts, span_places, call_twins.
-- Rule: it failed if any of its records says so. Other columns are filled from the record that represents it, else from its other records.
WITH records AS NOT MATERIALIZED (
    SELECT
        tools.*,
        twins.twin_of,
        CASE WHEN tools.status = 'error' THEN coalesce(tools.error, tools.status_message) END AS failure
    FROM spans AS tools
    LEFT JOIN call_twins AS twins
        ON twins.rollout_id = tools.rollout_id
        AND twins.attempt_id = tools.attempt_id
        AND twins.trace_id = tools.trace_id
        AND twins.span_id = tools.span_id
        AND twins.start_ns IS NOT DISTINCT FROM tools.start_ns
    WHERE tools.op = 'tool'
),
others AS (
    SELECT
        rollout_id,
        attempt_id,
        twin_of AS span_id,
        min(tool_name) AS tool_name,
        min(tool_call_id) AS tool_call_id,
        min(tool_arguments) AS tool_arguments,
        min(tool_result) AS tool_result,
        bool_or(status = 'error') AS failed,
        min(failure) AS failure
    FROM records
    WHERE twin_of IS NOT NULL
    GROUP BY rollout_id, attempt_id, twin_of
)
SELECT
    attempts.run,
    attempts.epoch,
    attempts.mode,
    tools.rollout_id,
    tools.attempt_id,
    tools.trace_id,
    tools.span_id,
    coalesce(places.agent, tools.agent_name) AS agent,
    coalesce(tools.tool_name, others.tool_name, tools.name) AS tool_name,
    coalesce(tools.tool_call_id, others.tool_call_id) AS tool_call_id,
    coalesce(tools.tool_arguments, others.tool_arguments) AS tool_arguments,
    coalesce(tools.tool_result, others.tool_result) AS tool_result,
    tools.status = 'error' OR coalesce(others.failed, false) AS failed,
    coalesce(tools.failure, others.failure) AS error,
    (tools.end_ns - tools.start_ns) / 1e6 AS milliseconds,
    make_timestamp_ns(tools.start_ns) AS started
FROM records AS tools
LEFT JOIN others
    ON others.rollout_id = tools.rollout_id AND others.attempt_id = tools.attempt_id AND others.span_id = tools.span_id
LEFT JOIN attempts ON attempts.rollout_id = tools.rollout_id AND attempts.attempt_id = tools.attempt_id
LEFT JOIN (FROM span_places WHERE op = 'tool') AS places
    ON places.rollout_id = tools.rollout_id
    AND places.attempt_id = tools.attempt_id
    AND places.trace_id = tools.trace_id
    AND places.span_id = tools.span_id
WHERE tools.twin_of IS NULL
