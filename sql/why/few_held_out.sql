-- There are too few held-out tasks to tell the gain that is hoped for from chance.
-- Grain: one row per evaluation but the first. Parameters: run. Inputs: rollouts.
-- Rule: there should be so many tasks that the 95% interval of the mean difference to the first evaluation is narrower than the gain. If the interval is
-- above 0 anyway, the gain is sure and no more are needed; with fewer than ten tasks no gain is sure.
-- Remedy: Hold out more tasks (`tasks.evaluate`, `evaluation.limit`), or try each several times (`evaluation.rollouts_per_task`).
-- Evidence: FROM held_out_gains(p_run := $run)
WITH limits AS (
    SELECT 0.05 AS hoped_gain, 10 AS least_tasks
),
tasks AS (
    SELECT epoch, task_id, avg(reward) AS reward
    FROM rollouts
    WHERE run = $run AND mode = 'evaluate' AND state = 'counts' AND reward IS NOT NULL
    GROUP BY ALL
),
compared AS (
    SELECT
        later.epoch,
        count(*) AS tasks,
        avg(later.reward - first.reward) AS gained,
        coalesce(stddev_samp(later.reward - first.reward), 0) AS deviation
    FROM tasks AS later
    JOIN (FROM tasks QUALIFY epoch = min(epoch) OVER ()) AS first USING (task_id)
    WHERE later.epoch > first.epoch
    GROUP BY ALL
),
judged AS (
    SELECT
        *,
        ceil((1.96 * deviation / hoped_gain) ** 2)::BIGINT AS needed,
        tasks >= least_tasks AND gained > 1.96 * deviation / sqrt(tasks) AS sure
    FROM compared
    CROSS JOIN limits
)
SELECT
    epoch,
    'evaluate' AS mode,
    NULL::VARCHAR AS policy,
    CASE WHEN tasks < least_tasks THEN 'warning' ELSE 'note' END AS severity,
    format('{} held-out tasks; about {} are needed to see {:.0f} points', tasks, greatest(needed, least_tasks), 100 * hoped_gain) AS what
FROM judged
WHERE tasks < greatest(needed, least_tasks) AND NOT sure
