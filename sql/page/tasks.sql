-- How often each task of a run was solved, epoch by epoch.
-- Grain: one row per (task_id, mode). Parameters: run, mode. Inputs: rollouts.
-- Rule: tasks that were never solved come first, then by the share of their rollouts that were right.
WITH cells AS (
    SELECT
        task_id,
        epoch,
        any_value(task_text) AS task,
        min(group_id) AS group_id,
        count(*) AS rollouts,
        count(*) FILTER (success) AS solved,
        avg(reward) AS reward
    FROM rollouts
    WHERE run = $run AND mode = $mode AND state = 'counts'
    GROUP BY task_id, epoch
)
SELECT
    task_id,
    any_value(task) AS task,
    sum(rollouts)::BIGINT AS rollouts,
    sum(solved)::BIGINT AS solved,
    avg(reward) AS reward,
    list({epoch: epoch, group_id: group_id, rollouts: rollouts, solved: solved, reward: reward} ORDER BY epoch) AS cells
FROM cells
GROUP BY task_id
ORDER BY sum(solved) > 0, sum(solved) / sum(rollouts), task_id
