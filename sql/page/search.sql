-- What the words of a search mean: a rollout, task, group or run by its id, exact ones first, then tasks by their text.
-- Grain: one row per place, twenty at most. Inputs: rollouts. Parameters: words, run (NULL: any; else its places come first).
-- Rule: of equals a rollout goes before a task, a task before a group and a run, and the newest run before the others.
WITH places AS (
    SELECT 'rollout' AS kind, run, rollout_id AS id, epoch, task_text AS text, started FROM rollouts
    UNION ALL
    SELECT 'task', run, task_id, NULL, min(task_text), max(started) FROM rollouts GROUP BY run, task_id
    UNION ALL
    SELECT 'group', run, group_id, NULL, min(task_text), max(started) FROM rollouts GROUP BY run, group_id
    UNION ALL
    SELECT 'run', run, run, NULL, NULL, max(started) FROM rollouts GROUP BY run
)
SELECT
    kind,
    run,
    id,
    epoch,
    text,
    id = $words AS exact,
    contains(lower(id), lower($words)) AS by_id,
    count(*) OVER () AS found
FROM places
WHERE run IS NOT NULL
    AND id IS NOT NULL
    AND (by_id OR (kind = 'task' AND contains(lower(text), lower($words))))
ORDER BY
    exact DESC,
    run IS NOT DISTINCT FROM $run DESC,
    by_id DESC,
    list_position(['rollout', 'task', 'group', 'run'], kind),
    max(started) OVER (PARTITION BY run) DESC NULLS LAST,
    id
LIMIT 20
