-- Every tool call, with arguments, result and whether it failed.
-- Grain: one row per tool span. Inputs: spans
SELECT
    rollout_id,
    attempt_id,
    span_id,
    coalesce(tool_name, name) AS tool,
    tool_call_id,
    tool_arguments,
    tool_result,
    status = 'error' AS failed,
    status_message,
    (end_ns - start_ns) / 1e6 AS milliseconds,
    make_timestamp_ns(start_ns) AS started
FROM spans
WHERE op = 'tool'
