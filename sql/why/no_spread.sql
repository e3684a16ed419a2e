-- Groups whose rollouts all got about the same reward: nothing is learned from them.
-- Grain: one row per (epoch, policy). Parameters: run. Inputs: advantages, rollouts.
-- Rule: a group teaches if any of its rollouts has an advantage that is trained; otherwise it counts under the first of its reasons by name. Groups that
-- are all right are the aim, so it warns if nearly all of the others teach nothing. Right refers to the group's rollouts: the task may be solved
-- in another epoch.
-- Remedy: Tasks that are always solved, or never, teach nothing: leave them out or make them easier (partial rewards, a hint, demonstrations first); a larger `rollout.group_size` finds the rare success; `tasks.sampler: unsolved` draws more tasks of the kinds that are not solved yet; `rollout.replaced_groups` rolls further tasks out in their place.
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
        min(advantages.left_out) AS reason,
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
        list_sort(list(task_id) FILTER (NOT teaches AND NOT once_solved)) AS hard,
        list_sort(list(task_id) FILTER (NOT teaches AND solved)) AS easy
    FROM groups
    GROUP BY ALL
),
reasons AS (
    SELECT epoch, policy, string_agg(format('{} {}', groups, reason), ', ' ORDER BY reason) AS reasons
    FROM (SELECT epoch, policy, reason, count(*) AS groups FROM groups WHERE NOT teaches GROUP BY ALL)
    GROUP BY ALL
)
SELECT
    epoch,
    'train' AS mode,
    policy,
    CASE WHEN idle = groups THEN 'error' WHEN idle - solved > most * (groups - solved) THEN 'warning' ELSE 'note' END AS severity,
    format(
        '{} of {} groups teach nothing ({:.0f}%): {}{}{}',
        idle, groups, 100 * idle / groups, reasons,
        CASE WHEN len(hard) > 0 THEN format('; no rollout of the epoch was right in {} of them ({})', len(hard), array_to_string(hard[:tasks_named], ', ')) ELSE '' END,
        CASE WHEN len(easy) > 0 THEN format('; all rollouts of the epoch were right in {} of them ({})', len(easy), array_to_string(easy[:tasks_named], ', ')) ELSE '' END
    ) AS what
FROM counted
JOIN reasons USING (epoch, policy)
CROSS JOIN limits
WHERE idle / groups > many
