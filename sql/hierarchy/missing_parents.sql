-- Parents that spans declare and nobody sent.
-- Grain: one row per missing id of an attempt: a node is made for it, that its children share. Its number is that of its
-- first child, negative; its time is what its children cover. `named`: a child says whose it is.
-- Inputs: nodes, evidence, names.
SELECT
    -min(nodes.node) AS node,
    nodes.attempt,
    evidence.missing_id AS span_id,
    min(nodes.trace_id) AS trace_id,
    min(nodes.start_ns) AS start_ns,
    max(coalesce(nodes.end_ns, nodes.start_ns)) AS end_ns,
    bool_or(names.node IS NOT NULL) AS named
FROM evidence
JOIN nodes USING (node)
LEFT JOIN names USING (node)
WHERE evidence.method = 'missing_parent'
GROUP BY nodes.attempt, evidence.missing_id
