-- The spans with each span id of an attempt: normally one, several if an agent seeds `random`.
-- Grain: one row per (attempt, span id), by its `span_key`. `node` is the earliest. Inputs: nodes.
SELECT span_key, min(node) AS node, count(*) AS spans FROM nodes GROUP BY span_key
