-- GRPO: a return against the mean of its group, in standard deviations.
-- Grain: one row per row of `returns` that acted. `left_out` is NULL if it trains.
-- Inputs: returns.
-- Rule: A = (R - mean) / (std + 1e-4) over the rollouts of the group at that step (Shao et al. 2024, DeepSeekMath, arXiv:2402.03300, section 4.1),
-- with the sample standard deviation. Each rollout counts once. Without a second rollout, or without spread, there is nothing to learn.
-- Sorted lists: sums and deviations must not depend on the order of the input.
WITH groups AS (
    SELECT policy, group_id, agent, step, list_sort(list(return)) AS returns FROM returns GROUP BY ALL
),
moments AS (
    SELECT
        * EXCLUDE (returns),
        len(returns) AS rollouts,
        list_avg(returns) AS mean,
        CASE WHEN returns[1] < returns[-1] THEN list_stddev_samp(returns) ELSE 0 END AS spread
    FROM groups
)
SELECT
    returns.* EXCLUDE (acted),
    moments.rollouts AS group_rollouts,
    moments.mean AS group_mean,
    moments.spread AS group_std,
    CASE WHEN moments.rollouts > 1 AND moments.spread > 0 THEN (returns.return - moments.mean) / (moments.spread + 1e-4) END AS advantage,
    CASE WHEN moments.rollouts < 2 THEN 'group_of_one' WHEN moments.spread = 0 THEN 'no_spread' END AS left_out
FROM returns
JOIN moments USING (policy, group_id, agent, step)
WHERE returns.acted
