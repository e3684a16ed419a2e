-- The rollouts of a group, side by side: the reward of each, and how much better than the others it did.
-- Grain: one row per rollout. Parameters: run, group_id. Inputs: rollouts, advantages.
-- Rule: with several agents or policies the advantage is the largest in size. A group that is left out has a mean and a spread too.
WITH pushed AS (
    SELECT
        rollout_id,
        arg_max(advantage, abs(advantage)) AS advantage,
        coalesce(arg_max(group_mean, abs(advantage)), any_value(group_mean)) AS group_mean,
        coalesce(arg_max(group_std, abs(advantage)), any_value(group_std)) AS group_std,
        any_value(left_out) AS left_out
    FROM advantages
    WHERE run = $run AND group_id = $group_id
    GROUP BY rollout_id
)
SELECT
    rollout_id,
    epoch,
    mode,
    task_id,
    task,
    task_text,
    outcome,
    error,
    output,
    reward,
    success,
    demonstration,
    calls,
    response_tokens,
    seconds,
    advantage,
    group_mean,
    group_std,
    left_out
FROM rollouts
LEFT JOIN pushed USING (rollout_id)
WHERE run = $run AND group_id = $group_id
ORDER BY rollout_id
