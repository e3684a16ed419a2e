-- One rollout as it counts.
-- Grain: one row. Parameters: run, rollout_id; epoch (NULL: the newest that has it). Inputs: rollouts.
SELECT *
FROM rollouts
WHERE rollout_id = $rollout_id AND run = $run AND ($epoch IS NULL OR epoch = $epoch)
ORDER BY epoch DESC
LIMIT 1
