-- How often the agent solved each task of a run, epoch by epoch.
-- Grain: one row per (task_id, mode). Parameters: run, mode. Inputs: rollouts.
-- Rule: tasks that were never solved come first, then by the share of their rollouts that were right. Demonstrations are in no share: a task that was
-- right only there (`demonstrated`) was never solved.
WITH cells AS (
    SELECT
        task_id,
        epoch,
        any_value(task_text) AS task,
        min(group_id) AS group_id,
        count(*) FILTER (NOT demonstration) AS rollouts,
        count(*) FILTER (success AND NOT demonstration) AS solved,
        count(*) FILTER (demonstration) AS demonstrations,
        count(*) FILTER (success AND demonstration) AS demonstrated,
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
    sum(demonstrated)::BIGINT AS demonstrated,
    avg(reward) AS reward,
    list({epoch: epoch, group_id: group_id, rollouts: rollouts, solved: solved, demonstrations: demonstrations, reward: reward} ORDER BY epoch) AS cells
FROM cells
GROUP BY task_id
ORDER BY sum(solved) > 0, sum(solved) / nullif(sum(rollouts), 0), task_id
