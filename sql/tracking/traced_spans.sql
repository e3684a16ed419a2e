-- The spans of some rollouts of an epoch, in their repaired trees, for MLflow's trace view.
-- Grain: one row per span, and per declared parent that never came (without a start). Parameters: run, epoch, mode, traces (how many rollouts).
-- Inputs: rollouts, span_tree, spans.
-- Rule: a third of the rollouts have the lowest rewards, a third the highest; a hash of their ids draws the others.
WITH ranked AS (
    SELECT
        *,
        row_number() OVER (ORDER BY reward NULLS LAST, rollout_id) AS from_worst,
        row_number() OVER (ORDER BY reward DESC NULLS LAST, rollout_id) AS from_best
    FROM rollouts
    WHERE run = $run AND epoch = $epoch AND mode = $mode AND state = 'counts'
),
chosen AS (
    SELECT *
    FROM ranked
    QUALIFY row_number() OVER (ORDER BY least(from_worst, from_best) <= $traces // 3 DESC, md5(rollout_id)) <= $traces
)
SELECT
    chosen.rollout_id,
    chosen.group_id,
    chosen.task_text,
    chosen.output,
    chosen.outcome,
    epoch_ns(chosen.started) AS began_ns,
    epoch_ns(chosen.ended) AS ended_ns,
    tree.node,
    tree.parent_node,
    tree.twin_node,
    tree.span_id,
    tree.name,
    tree.op,
    tree.agent,
    tree.method,
    tree.confidence,
    spans.start_ns,
    spans.end_ns,
    spans.status = 'error' AS failed,
    coalesce(spans.input_messages, spans.tool_arguments, spans.task) AS inputs,
    coalesce(spans.output_messages, spans.tool_result, spans.output) AS outputs,
    spans.reward,
    spans.reward_name,
    spans.reward_source
FROM chosen
JOIN span_tree AS tree
    ON tree.run = chosen.run
    AND tree.epoch = chosen.epoch
    AND tree.rollout_id = chosen.rollout_id
    AND tree.attempt_id = chosen.attempt_id
LEFT JOIN spans
    ON spans.rollout_id = tree.rollout_id
    AND spans.attempt_id = tree.attempt_id
    AND spans.trace_id = tree.trace_id
    AND spans.span_id = tree.span_id
    AND spans.start_ns IS NOT DISTINCT FROM epoch_ns(tree.started)
ORDER BY chosen.rollout_id, abs(tree.node), tree.node
