-- Counterfactual: a return against those of the rollouts in which the other agents had said the same.
-- Grain: one row per row of `returns` that acted. `left_out` is NULL if it trains. `fell_back`: in no other rollout of the group had they said
-- the same, so it is compared with all of them.
-- Inputs: returns, other_outputs.
-- Rule: A = R - mean of the other n - 1 rollouts at that step whose `others` are the same, as if the agent alone had acted otherwise (after COMA's
-- baseline, Foerster et al. 2018, arXiv:1705.08926, section 4, with rollouts in place of its critic); if there are none, of all others, as rloo.
WITH keyed AS (
    SELECT returns.*, other_outputs.others
    FROM returns
    LEFT JOIN other_outputs USING (policy, rollout_id, attempt_id, agent, step)
),
groups AS (
    SELECT policy, group_id, agent, step, list_sort(list(return)) AS returns FROM keyed GROUP BY ALL
),
alike AS (
    SELECT policy, group_id, agent, step, others, list_sort(list(return)) AS returns
    FROM keyed
    WHERE others IS NOT NULL
    GROUP BY ALL
    HAVING count(*) > 1
),
compared AS (
    SELECT
        keyed.* EXCLUDE (others, acted),
        alike.returns IS NULL AS fell_back,
        coalesce(alike.returns, groups.returns) AS returns
    FROM keyed
    JOIN groups USING (policy, group_id, agent, step)
    LEFT JOIN alike USING (policy, group_id, agent, step, others)
    WHERE keyed.acted
)
SELECT
    * EXCLUDE (returns),
    len(returns) AS group_rollouts,
    list_avg(returns) AS group_mean,
    CASE WHEN returns[1] < returns[-1] THEN (return - list_avg(returns)) * len(returns) / (len(returns) - 1) END AS advantage,
    CASE WHEN len(returns) < 2 THEN 'group_of_one' WHEN returns[1] = returns[-1] THEN 'no_spread' END AS left_out
FROM compared
