-- GRPO at the level of calls, as Agent Lightning groups them: every call of a task's rollouts is a sample of its own.
-- Grain: one row per row of `returns` that acted. Inputs: returns.
-- Rule: A = (R - mean) / (std + 1e-6) over all calls of all rollouts of the task, so a rollout of two calls counts twice and
-- pulls the mean towards itself. With `reward: {assign: discounted, gamma: 1}` every call has its rollout's reward; with
-- `merge: per_call` every call is a training row. Nothing is left out: where all are equal the advantage is 0.
-- Sorted lists: sums must not depend on the order of the input.
WITH moments AS (
    SELECT policy, group_id, list_sort(list(return)) AS returns FROM returns WHERE acted GROUP BY ALL
)
SELECT
    returns.* EXCLUDE (acted),
    len(moments.returns) AS group_rollouts,
    list_avg(moments.returns) AS group_mean,
    coalesce(list_stddev_samp(moments.returns), 0) AS group_std,
    (returns.return - list_avg(moments.returns)) / (coalesce(list_stddev_samp(moments.returns), 0) + 1e-6) AS advantage
FROM returns
JOIN moments USING (policy, group_id)
WHERE returns.acted
