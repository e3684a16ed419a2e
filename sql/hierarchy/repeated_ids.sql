-- Spans that share trace and span id with another span of their attempt that has other content: both are kept.
-- Grain: one row per such span. Inputs: nodes, id_bearers, spans.
SELECT nodes.node
FROM nodes
JOIN (FROM id_bearers WHERE spans > 1) AS borne USING (span_key)
JOIN spans USING (record_offset, record_index)
QUALIFY count(*) OVER (PARTITION BY nodes.span_key, spans.trace_id) > 1
