-- The rollout that a name, or a wish for a bad one, means.
-- Grain: one row at most. Inputs: rollouts. Parameters, NULL for any: name (of a rollout or a task), run, epoch; worst, failed (booleans).
-- Rule: a rollout of that name goes before rollouts of a task of that name, then the newest epoch; `worst`: the one with the lowest reward there.
SELECT run, rollout_id, epoch
FROM rollouts
WHERE ($name IS NULL OR rollout_id = $name OR task_id = $name)
    AND ($run IS NULL OR run = $run)
    AND ($epoch IS NULL OR epoch = $epoch)
    AND run IS NOT NULL
    AND (NOT $failed OR success IS DISTINCT FROM true)
    AND (NOT ($worst OR $failed) OR state = 'counts')
ORDER BY
    rollout_id IS NOT DISTINCT FROM $name DESC,
    max(started) OVER (PARTITION BY run) DESC,
    epoch DESC,
    mode = 'train' DESC,
    CASE WHEN $worst THEN reward END NULLS LAST,
    rollout_id
LIMIT 1
