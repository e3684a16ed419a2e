-- Parents that spans declare and nobody sent.
-- Grain: one row per missing id of an attempt: its children share a node that is made for it. Its number is that of its first child,
-- negative; its time is what its children cover. `named`: a child names its agent.
-- Inputs: nodes, evidence, names, spans.
WITH children AS MATERIALIZED (
    -- First, so that DuckDB knows that there are none, as a rule, and reads no texts.
    SELECT nodes.node, nodes.attempt, nodes.record_offset, nodes.record_index, nodes.start_ns, nodes.end_ns, evidence.missing_key
    FROM evidence
    JOIN nodes USING (node)
    WHERE evidence.method = 'missing_parent'
),
texts AS MATERIALIZED (
    SELECT children.node, spans.parent_span_id, spans.trace_id FROM children JOIN spans USING (record_offset, record_index)
)
SELECT
    -min(children.node) AS node,
    children.attempt,
    children.missing_key AS span_key,
    min(texts.parent_span_id) AS span_id,
    min(texts.trace_id) AS trace_id,
    min(children.start_ns) AS start_ns,
    max(coalesce(children.end_ns, children.start_ns)) AS end_ns,
    bool_or(names.node IS NOT NULL) AS named
FROM children
JOIN texts USING (node)
LEFT JOIN names USING (node)
GROUP BY children.attempt, children.missing_key
