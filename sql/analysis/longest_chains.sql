-- The deepest trees and the longest conversations.
-- Grain: one row per rollout of a run, deepest first. Inputs: span_tree, rollouts, attempts, sequences.
-- Parameters: p_run (default: the newest run), p_epoch (default: all).
-- `depth` is the longest path from the root; `longest_sequence` the largest number of calls merged into one training row.
WITH chosen AS (
    SELECT run FROM attempts WHERE p_run IS NULL OR run = p_run ORDER BY started DESC LIMIT 1
),
trees AS (
    SELECT
        tree.rollout_id,
        tree.attempt_id,
        count(*) AS spans,
        max(tree.depth) AS depth,
        count(*) FILTER (tree.op = 'llm' AND tree.twin_node IS NULL) AS calls,
        count(*) FILTER (tree.op = 'tool') AS tool_calls,
        count(DISTINCT tree.agent) AS agents,
        arg_max(tree.agent_path, (len(string_split(tree.agent_path, '/')), tree.agent_path)) AS longest_path
    FROM span_tree AS tree
    JOIN chosen USING (run)
    WHERE p_epoch IS NULL OR tree.epoch = p_epoch
    GROUP BY tree.rollout_id, tree.attempt_id
),
merged AS (
    SELECT rollout_id, attempt_id, max(len(call_ids)) AS longest_sequence
    FROM sequences
    GROUP BY rollout_id, attempt_id
)
SELECT
    rollouts.run,
    rollouts.epoch,
    rollouts.mode,
    rollouts.rollout_id,
    trees.depth,
    trees.spans,
    trees.calls,
    trees.tool_calls,
    trees.agents,
    trees.longest_path,
    merged.longest_sequence,
    rollouts.seconds,
    rollouts.reward
FROM trees
JOIN rollouts USING (rollout_id, attempt_id)
LEFT JOIN merged USING (rollout_id, attempt_id)
ORDER BY trees.depth DESC, trees.calls DESC, trees.spans DESC, rollouts.rollout_id
