-- The repaired tree of every attempt: each span's place, how it was found, and the agent of the span.
-- Grain: one row per (run, epoch, node): a span, or a declared parent that never came (`method` synthesised, negative `node`).
-- Inputs: stored.span_tree.
-- Rule: `node` numbers the spans of an epoch; `parent_node` and `twin_node` are such numbers of the same epoch. `call_id` is the call that the span
-- is, or is another record of.
SELECT
    * EXCLUDE (twin_of, start_ns, end_ns),
    twin_of AS twin_node,
    CASE WHEN op = 'llm' THEN call_id_of(run, epoch, coalesce(twin_of, node)) END AS call_id,
    make_timestamp_ns(start_ns) AS started,
    make_timestamp_ns(end_ns) AS ended
FROM stored.span_tree
