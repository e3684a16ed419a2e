-- The spans of one attempt, as they came.
-- Grain: one row per span. Parameters: rollout_id, attempt_id. Inputs: spans.
SELECT name, op, status, status_message, trace_id, span_id, parent_span_id, instrumentation, sender, refused, attributes, resource, events
FROM spans
WHERE rollout_id = $rollout_id AND attempt_id = $attempt_id
ORDER BY start_ns, record_offset, record_index
LIMIT 500
