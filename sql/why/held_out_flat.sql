-- The reward rises in training, and that of the held-out tasks does not.
-- Grain: one row per evaluation. Parameters: run. Inputs: rollouts.
-- Rule: both rewards are compared with the first epoch or evaluation, with 95% intervals: training over groups, each divided by the weight of its task in
-- the draw, held-out over tasks. Flat means a gain of less than a quarter of training's, with an interval that includes 0; a gain below 0 is worse.
-- Remedy: Train on more and other tasks, for fewer epochs; see whether the training tasks leak their answers, and whether the held-out ones are of the same kind.
-- Evidence: FROM task_changes(p_run := $run)
WITH limits AS (
    SELECT 0.1 AS least_gain, 0.25 AS flat, 10 AS least_tasks
),
groups AS (
    SELECT epoch, group_id, coalesce(any_value(weight), 1) AS weight, avg(reward) AS reward
    FROM rollouts
    WHERE run = $run AND mode = 'train' AND state = 'counts' AND reward IS NOT NULL
    GROUP BY ALL
),
means AS (
    SELECT epoch, uniform_mean(reward, weight) AS reward FROM groups GROUP BY epoch
),
epochs AS (
    SELECT
        epoch,
        means.reward,
        uniform_variance(groups.reward, weight, means.reward) AS variance
    FROM groups
    JOIN means USING (epoch)
    GROUP BY ALL
),
trained AS (
    SELECT epochs.epoch, first.reward AS before, epochs.reward AS after, after - before AS gained, 1.96 * sqrt(epochs.variance + first.variance) AS half
    FROM epochs
    CROSS JOIN (FROM epochs ORDER BY epoch LIMIT 1) AS first
),
held_out AS (
    SELECT * FROM held_out_gains(p_run := $run) QUALIFY since = min(since) OVER ()
)
SELECT
    held_out.epoch,
    'evaluate' AS mode,
    NULL::VARCHAR AS policy,
    CASE WHEN held_out.high < 0 THEN 'error' ELSE 'warning' END AS severity,
    format(
        'reward in training {:.2f} → {:.2f}, of {} held-out tasks {:.2f} → {:.2f} ({:+.2f} a task, 95%: {:+.2f} to {:+.2f})',
        trained.before, trained.after, tasks, held_out.before, held_out.after, held_out.gained, held_out.low, held_out.high
    ) AS what
FROM held_out
JOIN trained ON trained.epoch = held_out.epoch - 1
CROSS JOIN limits
WHERE trained.gained > trained.half
    AND trained.gained > least_gain
    AND tasks >= least_tasks
    AND held_out.low <= 0
    AND held_out.gained < flat * trained.gained
