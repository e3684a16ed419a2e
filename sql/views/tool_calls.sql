-- Every tool call, with arguments, result, whether it failed, and the agent that made it.
-- Grain: one row per tool span. Inputs: spans, attempts, span_places.
SELECT
    attempts.run,
    attempts.epoch,
    attempts.mode,
    tools.rollout_id,
    tools.attempt_id,
    tools.trace_id,
    tools.span_id,
    coalesce(places.agent, tools.agent_name) AS agent,
    coalesce(tools.tool_name, tools.name) AS tool_name,
    tools.tool_call_id,
    tools.tool_arguments,
    tools.tool_result,
    tools.status = 'error' AS failed,
    CASE WHEN tools.status = 'error' THEN coalesce(tools.error, tools.status_message) END AS error,
    (tools.end_ns - tools.start_ns) / 1e6 AS milliseconds,
    make_timestamp_ns(tools.start_ns) AS started
FROM spans AS tools
LEFT JOIN attempts USING (rollout_id, attempt_id)
LEFT JOIN (FROM span_places WHERE op = 'tool') AS places
    ON places.rollout_id = tools.rollout_id
    AND places.attempt_id = tools.attempt_id
    AND places.trace_id = tools.trace_id
    AND places.span_id = tools.span_id
WHERE tools.op = 'tool'
