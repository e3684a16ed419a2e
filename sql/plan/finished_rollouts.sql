-- Rollouts of an epoch that need not be run again: they ended, well or not, for reasons of their own.
-- Grain: one row per rollout_id. Inputs: spans.
-- Parameters: $run, $epoch, $mode.
-- Rule: an attempt that the infrastructure broke does not finish its rollout; another attempt of it may.
SELECT DISTINCT rollout_id
FROM spans
WHERE op = 'rollout' AND run = $run AND epoch = $epoch AND mode = $mode AND outcome <> 'infrastructure'
