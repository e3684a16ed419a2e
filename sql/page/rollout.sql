-- One rollout, by its attempt that counts.
-- Grain: one row. Parameters: run, rollout_id; epoch (NULL: the newest that has it). Inputs: rollouts, epoch_manifests.
-- Rule: `imitating` are the policies that took examples of the epoch (sft).
SELECT rollouts.*, coalesce(imitating_policies(manifests.settings), []) AS imitating
FROM rollouts
LEFT JOIN epoch_manifests AS manifests USING (run, epoch, mode)
WHERE rollout_id = $rollout_id AND run = $run AND ($epoch IS NULL OR epoch = $epoch)
ORDER BY epoch DESC
LIMIT 1
