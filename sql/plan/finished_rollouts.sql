-- Rollouts of an epoch that need not be run again: they ended, well or not, for reasons of their own.
-- Grain: one row per rollout_id. Inputs: spans.
-- Parameters: $run, $epoch, $mode.
-- Rule: a rollout that failed for reasons of the infrastructure is not finished; it may have another try beside that is.
SELECT DISTINCT rollout_id
FROM spans
WHERE op = 'rollout' AND run = $run AND epoch = $epoch AND mode = $mode AND outcome <> 'infrastructure'
