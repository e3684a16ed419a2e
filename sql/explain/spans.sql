-- The repaired tree of one attempt: each span with the parent that it declared, and the reason for its place.
-- Grain: one row per span. Parameters: run, epoch, rollout_id, attempt_id. Inputs: span_tree, methods
SELECT
    tree.node,
    tree.parent_node,
    tree.span_id,
    tree.declared_parent_id,
    tree.trace_id,
    tree.name,
    tree.op,
    tree.depth,
    tree.agent,
    tree.agent_path,
    tree.ambiguous,
    tree.method,
    tree.candidates,
    tree.confidence,
    methods.evidence,
    tree.twin_node,
    tree.call_id,
    tree.repeated_id,
    (epoch_ns(tree.started) - min(epoch_ns(tree.started)) OVER ()) / 1e9 AS starts_s,
    (epoch_ns(tree.ended) - epoch_ns(tree.started)) / 1e9 AS seconds
FROM span_tree AS tree
LEFT JOIN methods USING (method)
WHERE tree.run = $run AND tree.epoch = $epoch AND tree.rollout_id = $rollout_id AND tree.attempt_id = $attempt_id
ORDER BY tree.started NULLS LAST, abs(tree.node), tree.node
