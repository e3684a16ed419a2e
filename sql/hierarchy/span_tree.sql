-- The repaired tree of every attempt: each span's place, how it was found, and the agent of the span.
-- Grain: one row per span, and one per declared parent that never came (`method` synthesised, negative `node`).
-- Inputs: places, nodes, spans, bucket, repeated_ids, missing_parents.
-- Rule: the declared parent stays in `declared_parent_id`; `method` says how `parent_id` was found (table `methods`).
WITH known AS (
    SELECT
        nodes.node,
        nodes.attempt,
        spans.trace_id,
        nodes.span_id,
        spans.parent_span_id,
        spans.name,
        nodes.op,
        nodes.start_ns,
        nodes.end_ns
    FROM nodes
    JOIN spans USING (record_offset, record_index)
    UNION ALL
    SELECT
        missing_parents.node,
        missing_parents.attempt,
        missing_parents.trace_id,
        missing_parents.span_id,
        NULL,
        '(missing)',
        'missing',
        missing_parents.start_ns,
        missing_parents.end_ns
    FROM missing_parents
)
SELECT
    bucket.rollout_id,
    bucket.attempt_id,
    places.node,
    this.trace_id,
    this.span_id,
    this.parent_span_id AS declared_parent_id,
    above.span_id AS parent_id,
    places.parent_node,
    places.method,
    places.candidates,
    places.confidence,
    places.depth,
    this.name,
    this.op,
    places.agent,
    places.agent_path,
    places.ambiguous,
    places.twin_of,
    repeated_ids.node IS NOT NULL AS repeated_id,
    this.start_ns,
    this.end_ns
FROM places
JOIN known AS this USING (node)
JOIN bucket USING (attempt)
LEFT JOIN (SELECT node, span_id FROM nodes UNION ALL SELECT node, span_id FROM missing_parents) AS above
    ON above.node = places.parent_node
LEFT JOIN repeated_ids ON repeated_ids.node = places.node
