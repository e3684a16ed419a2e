-- The tree of every attempt as repaired: each span's place, how it was found, and the agent it belongs to.
-- Grain: one row per span, and one per declared parent that never came (`method` synthesised, negative `node`).
-- Inputs: places, nodes, bucket, repeated_ids, missing_parents.
-- Rule: what was declared stays in `declared_parent_id`; `method` says where `parent_id` came from (table `methods`).
WITH known AS (
    SELECT node, attempt, trace_id, span_id, parent_span_id, name, op, start_ns, end_ns
    FROM nodes
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
LEFT JOIN known AS above ON above.node = places.parent_node
LEFT JOIN repeated_ids ON repeated_ids.node = places.node
