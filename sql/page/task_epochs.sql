-- One task over the epochs of a run.
-- Grain: one row per (epoch, mode). Parameters: run, task_id. Inputs: rollouts.
-- Rule: `solved`: by the policy itself; `demonstrations` were shown to it, right or not.
SELECT
    epoch,
    mode,
    min(group_id) AS group_id,
    count(*) AS rollouts,
    count(*) FILTER (success AND NOT demonstration) AS solved,
    count(*) FILTER (demonstration) AS demonstrations,
    avg(reward) AS reward
FROM rollouts
WHERE run = $run AND task_id = $task_id AND state = 'counts'
GROUP BY epoch, mode
ORDER BY epoch, mode
