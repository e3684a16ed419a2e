-- Spans that are older than retention allows.
-- Grain: one row per row of `stored` that is removed; run, epoch and mode are those of its rollout (NULL: no rollout).
-- Inputs: stored (spans, with filename), limits (one row: before_ns), unfinished (run, epoch, mode, rollout_id: NULL means all its rollouts).
-- Rule: an attempt is removed as a whole, once its newest span is old enough; a span without a rollout by its own age. Rollouts of an epoch that
-- is not finished stay.
WITH owners AS (
    SELECT rollout_id, min(run) AS run, min(epoch) AS epoch, min(mode) AS mode
    FROM stored
    WHERE op IN ('rollout', 'rollout.start') AND rollout_id IS NOT NULL
    GROUP BY rollout_id
),
attempts AS (
    SELECT rollout_id, attempt_id
    FROM stored
    WHERE rollout_id IS NOT NULL
    GROUP BY rollout_id, attempt_id
    HAVING max(received_ns) < (SELECT before_ns FROM limits)
),
leaving AS (
    SELECT attempts.rollout_id, attempts.attempt_id, owners.run, owners.epoch, owners.mode
    FROM attempts
    LEFT JOIN owners USING (rollout_id)
    WHERE attempts.rollout_id NOT IN (SELECT rollout_id FROM unfinished WHERE rollout_id IS NOT NULL)
        AND NOT EXISTS (
            SELECT 1
            FROM unfinished
            WHERE unfinished.run = owners.run AND unfinished.epoch = owners.epoch AND unfinished.mode = owners.mode
        )
)
SELECT filename, record_offset, record_index, leaving.run, leaving.epoch, leaving.mode
FROM stored
JOIN leaving
    ON stored.rollout_id = leaving.rollout_id AND stored.attempt_id IS NOT DISTINCT FROM leaving.attempt_id
UNION ALL
SELECT filename, record_offset, record_index, NULL, NULL, NULL
FROM stored
WHERE rollout_id IS NULL AND received_ns < (SELECT before_ns FROM limits)
