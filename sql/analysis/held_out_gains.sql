-- How much the held-out tasks gained between any two evaluations of a run, task by task.
-- Grain: one row per (run, since, epoch): an evaluation and a later one, each named by the number of epochs trained before it.
-- Inputs: rollouts.
-- Parameters: p_run, p_since, p_epoch (default: all).
-- Rule: only tasks of both evaluations count, each once, with the mean of its rollouts. `gained` is the mean
-- difference, `low` to `high` its 95% interval (normal, of the differences): the reward rose if `low` is above 0.
WITH tasks AS (
    SELECT run, epoch, task_id, avg(reward) AS reward
    FROM rollouts
    WHERE mode = 'evaluate' AND state = 'counts' AND reward IS NOT NULL AND (p_run IS NULL OR run = p_run)
    GROUP BY run, epoch, task_id
),
compared AS (
    SELECT
        run,
        earlier.epoch AS since,
        later.epoch,
        earlier.reward AS before,
        later.reward AS after,
        later.reward - earlier.reward AS gained
    FROM tasks AS earlier
    JOIN tasks AS later USING (run, task_id)
    WHERE earlier.epoch < later.epoch
        AND (p_since IS NULL OR earlier.epoch = p_since)
        AND (p_epoch IS NULL OR later.epoch = p_epoch)
)
SELECT
    run,
    since,
    epoch,
    count(*) AS tasks,
    avg(before) AS before,
    avg(after) AS after,
    avg(gained) AS gained,
    avg(gained) - 1.96 * stddev_samp(gained) / sqrt(count(*)) AS low,
    avg(gained) + 1.96 * stddev_samp(gained) / sqrt(count(*)) AS high
FROM compared
GROUP BY run, since, epoch
ORDER BY run, since, epoch
