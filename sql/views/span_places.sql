-- The agent that each span of a derived epoch belongs to.
-- Grain: one row per (rollout_id, attempt_id, trace_id, span_id); spans that share an id share the row, with the agent of
-- the first. Inputs: stored.span_tree.
SELECT rollout_id, attempt_id, trace_id, span_id, op, agent, agent_path, ambiguous
FROM stored.span_tree
WHERE NOT repeated_id
UNION ALL
SELECT
    rollout_id,
    attempt_id,
    trace_id,
    span_id,
    min_by(op, node),
    min_by(agent, node),
    min_by(agent_path, node),
    bool_or(ambiguous)
FROM stored.span_tree
WHERE repeated_id
GROUP BY rollout_id, attempt_id, trace_id, span_id
