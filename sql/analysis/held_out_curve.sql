-- How the held-out tasks went, evaluation by evaluation, and what was gained since the run's first one, task by task.
-- Grain: one row per (run, epoch): the evaluation of what `epoch` epochs of training came to. Inputs: rollouts.
-- Rule: a task counts once, with the mean of its rollouts. `gained` is the mean difference to the first evaluation over
-- the tasks of both, `low` to `high` its 95% interval (normal, of the differences); it rose where `low` is above 0.
WITH tasks AS (
    SELECT run, epoch, task_id, avg(reward) AS reward, avg(success::INTEGER) AS success, count(*) AS rollouts
    FROM rollouts
    WHERE mode = 'evaluate' AND state = 'counts' AND reward IS NOT NULL
    GROUP BY run, epoch, task_id
),
compared AS (
    SELECT tasks.*, tasks.reward - first_one.reward AS gained
    FROM tasks
    LEFT JOIN tasks AS first_one
        ON first_one.run = tasks.run
        AND first_one.task_id = tasks.task_id
        AND first_one.epoch = (SELECT min(earliest.epoch) FROM tasks AS earliest WHERE earliest.run = tasks.run)
)
SELECT
    run,
    epoch,
    count(*) AS tasks,
    sum(rollouts)::BIGINT AS rollouts,
    avg(success) AS held_out_right,
    avg(reward) AS held_out_reward,
    avg(gained) AS gained,
    avg(gained) - 1.96 * stddev_samp(gained) / sqrt(count(gained)) AS low,
    avg(gained) + 1.96 * stddev_samp(gained) / sqrt(count(gained)) AS high
FROM compared
GROUP BY run, epoch
ORDER BY run, epoch
