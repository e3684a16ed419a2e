-- Dr. GRPO: a return against the mean of its group, not divided by the deviation.
-- Grain: one row per row of `returns` that acted. `left_out` is NULL if it trains.
-- Inputs: returns.
-- Rule: A = R - mean over the rollouts of the group at that step (Liu et al. 2025, Understanding R1-Zero-Like Training, arXiv:2503.20783): dividing
-- by the deviation favours tasks that are nearly always or nearly never solved.
WITH groups AS (
    SELECT policy, group_id, agent, step, list_sort(list(return)) AS returns FROM returns GROUP BY ALL
),
moments AS (
    SELECT
        * EXCLUDE (returns), len(returns) AS rollouts, list_avg(returns) AS mean, returns[1] < returns[-1] AS spread
    FROM groups
)
SELECT
    returns.* EXCLUDE (acted),
    moments.rollouts AS group_rollouts,
    moments.mean AS group_mean,
    CASE WHEN moments.spread THEN returns.return - moments.mean END AS advantage,
    CASE WHEN moments.rollouts < 2 THEN 'group_of_one' WHEN NOT moments.spread THEN 'no_spread' END AS left_out
FROM returns
JOIN moments USING (policy, group_id, agent, step)
WHERE returns.acted
