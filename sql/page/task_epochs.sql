-- One task over the epochs of a run.
-- Grain: one row per (epoch, mode). Parameters: run, task_id. Inputs: rollouts.
SELECT
    epoch,
    mode,
    min(group_id) AS group_id,
    count(*) AS rollouts,
    count(*) FILTER (success) AS solved,
    avg(reward) AS reward
FROM rollouts
WHERE run = $run AND task_id = $task_id AND state = 'counts'
GROUP BY epoch, mode
ORDER BY epoch, mode
