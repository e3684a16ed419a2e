-- Spans that share trace and span id with another of their attempt, which says something else: both are kept.
-- Grain: one row per such span. Inputs: nodes, id_bearers.
SELECT nodes.node
FROM nodes
SEMI JOIN (FROM id_bearers WHERE spans > 1) AS borne USING (span_key)
QUALIFY count(*) OVER (PARTITION BY nodes.span_key, nodes.trace_id) > 1
