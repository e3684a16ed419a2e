-- Groups whose rollouts all got about the same reward: nothing is learned from them.
-- Grain: one row per (epoch, policy). Parameters: run. Inputs: advantages, rollouts.
-- Rule: a group teaches where any of its rollouts has an advantage that is trained.
-- Remedy: Tasks that are always solved, or never, teach nothing: leave them out or make them easier (partial rewards, a hint, demonstrations first); a larger `rollout.group_size` finds the rare success; `tasks.sampler: unsolved` draws more tasks of the kinds that are not solved yet.
-- Evidence: SELECT epoch, policy, group_id, group_mean, group_std, left_out, count(*) AS rollouts FROM advantages WHERE run = $run AND left_out IS NOT NULL GROUP BY ALL ORDER BY ALL
WITH limits AS (
    SELECT 0.5 AS many, 0.85 AS most, 3 AS tasks_named
),
groups AS (
    SELECT
        advantages.epoch,
        advantages.policy,
        advantages.group_id,
        any_value(rollouts.task_id) AS task_id,
        bool_or(advantages.left_out IS NULL) AS teaches,
        bool_and(coalesce(rollouts.success, false)) AS solved,
        bool_or(coalesce(rollouts.success, false)) AS once_solved
    FROM advantages
    JOIN rollouts USING (run, epoch, rollout_id, attempt_id)
    WHERE advantages.run = $run
    GROUP BY ALL
),
counted AS (
    SELECT
        epoch,
        policy,
        count(*) AS groups,
        count(*) FILTER (NOT teaches) AS idle,
        count(*) FILTER (NOT teaches AND solved) AS solved,
        count(*) FILTER (NOT teaches AND NOT once_solved) AS unsolved,
        list_sort(list(task_id) FILTER (NOT teaches AND NOT once_solved)) AS hard,
        list_sort(list(task_id) FILTER (NOT teaches AND solved)) AS easy
    FROM groups
    GROUP BY ALL
)
SELECT
    epoch,
    'train' AS mode,
    policy,
    CASE WHEN idle = groups THEN 'error' WHEN idle / groups > most THEN 'warning' ELSE 'note' END AS severity,
    format(
        '{} of {} groups teach nothing ({:.0f}%): {} never solved{}, {} always solved{}',
        idle, groups, 100 * idle / groups,
        unsolved, CASE WHEN unsolved > 0 THEN format(' ({})', array_to_string(hard[:tasks_named], ', ')) ELSE '' END,
        solved, CASE WHEN solved > 0 THEN format(' ({})', array_to_string(easy[:tasks_named], ', ')) ELSE '' END
    ) AS what
FROM counted
CROSS JOIN limits
WHERE idle / groups > many
