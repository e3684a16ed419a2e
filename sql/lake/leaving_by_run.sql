-- Spans of the rollouts of some runs.
-- Grain: one row per row of `stored` that is removed.
-- Inputs: stored (spans, with filename), leaving_runs (run).
-- Rule: a rollout belongs to the run that its `rollout` or `rollout.start` span names; all its spans are removed with it.
WITH owners AS (
    SELECT rollout_id, min(run) AS run, min(epoch) AS epoch, min(mode) AS mode
    FROM stored
    SEMI JOIN leaving_runs USING (run)
    WHERE op IN ('rollout', 'rollout.start')
    GROUP BY rollout_id
)
SELECT filename, record_offset, record_index, owners.run, owners.epoch, owners.mode
FROM stored
JOIN owners USING (rollout_id)
