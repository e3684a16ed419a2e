-- The spans that the epoch consists of, each once, with all their columns.
-- Grain: one row per span of an attempt that counts; `node` is its number within the epoch.
-- Inputs: spans, node_keys.
SELECT keys.node, spans.*
FROM spans
JOIN node_keys AS keys USING (record_offset, record_index)
