-- Who bears each span id of an attempt: one span, as a rule; several where an agent seeds `random`.
-- Grain: one row per (attempt, span id), by its `span_key`. `node` is the earliest. Inputs: nodes.
SELECT span_key, min(node) AS node, count(*) AS spans FROM nodes GROUP BY span_key
