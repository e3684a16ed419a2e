-- The rows that are trained on.
-- Grain: one row per (run, epoch, sequence_id). Inputs: stored.sequences.
-- Rule: `call_ids` are the calls that are trained in it, in their order, as in policy_calls; `choices` says which choice of each.
SELECT
    * EXCLUDE (call_ids),
    [call_id_of(run, epoch, split_part(id, '.', 1)) FOR id IN call_ids] AS call_ids,
    [split_part(id, '.', 2)::INTEGER FOR id IN call_ids] AS choices
FROM stored.sequences
