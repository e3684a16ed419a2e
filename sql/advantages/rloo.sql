-- RLOO: a return against the mean of the others of its group.
-- Grain: one row per row of `returns` that acted. `left_out` is NULL if it trains.
-- Inputs: returns.
-- Rule: A = R - mean of the other n - 1 rollouts at that step (Ahmadian et al. 2024, Back to Basics, arXiv:2402.14740; Kool et al. 2019), which is
-- n / (n - 1) * (R - mean of all).
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
    CASE WHEN moments.spread THEN (returns.return - moments.mean) * moments.rollouts / (moments.rollouts - 1) END AS advantage,
    CASE WHEN moments.rollouts < 2 THEN 'group_of_one' WHEN NOT moments.spread THEN 'no_spread' END AS left_out
FROM returns
JOIN moments USING (policy, group_id, agent, step)
WHERE returns.acted
