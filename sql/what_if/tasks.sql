-- The tasks on which most of the gradient would have changed hands, over all epochs.
-- Grain: one row per (policy, task_id). Inputs: moved. Parameters: none.
SELECT
    policy,
    task_id,
    count(DISTINCT rollout_id) AS rollouts,
    avg(reward_before) AS reward_before,
    avg(reward_after) AS reward_after,
    sum(moved) / nullif(sum(sum(moved)) OVER (PARTITION BY policy), 0) AS share_of_moved
FROM moved
GROUP BY policy, task_id
ORDER BY policy, share_of_moved DESC NULLS LAST, task_id
