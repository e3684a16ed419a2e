-- The tool calls of one attempt.
-- Grain: one row per tool call. Parameters: rollout_id, attempt_id. Inputs: tool_calls.
SELECT span_id, agent, tool_name, tool_arguments, tool_result, failed, error, milliseconds
FROM tool_calls
WHERE rollout_id = $rollout_id AND attempt_id = $attempt_id
ORDER BY started, span_id
