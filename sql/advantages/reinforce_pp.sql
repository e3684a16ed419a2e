-- REINFORCE++: a return against those of the whole epoch, in standard deviations.
-- Grain: one row per row of `returns` that acted. Nothing is left out.
-- Inputs: returns.
-- Rule: A = (R - mean) / (std + 1e-4) over all of the policy's rollouts of the epoch, whatever their group (Hu 2025, REINFORCE++,
-- arXiv:2501.03262: global batch normalisation). Each rollout weighs the same, however many steps it has; std is that of
-- the population.
-- Sorted lists: sums must not depend on the order of the input.
WITH rollouts AS (
    SELECT policy, rollout_id, list_avg(list_sort(list(return))) AS mean FROM returns WHERE acted GROUP BY ALL
),
means AS (
    SELECT policy, list_avg(list_sort(list(mean))) AS mean FROM rollouts GROUP BY ALL
),
deviations AS (
    SELECT policy, rollout_id, list_avg(list_sort(list((returns.return - means.mean) ** 2))) AS variance
    FROM returns
    JOIN means USING (policy)
    WHERE returns.acted
    GROUP BY ALL
),
spreads AS (
    SELECT policy, sqrt(list_avg(list_sort(list(variance)))) AS std, count(*) AS rollouts FROM deviations GROUP BY ALL
)
SELECT
    returns.* EXCLUDE (acted),
    spreads.rollouts AS group_rollouts,
    means.mean AS group_mean,
    spreads.std AS group_std,
    (returns.return - means.mean) / (spreads.std + 1e-4) AS advantage,
    NULL::VARCHAR AS left_out
FROM returns
JOIN means USING (policy)
JOIN spreads USING (policy)
WHERE returns.acted
