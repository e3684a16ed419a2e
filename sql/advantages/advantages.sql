-- How much better than expected each rollout did, by each policy's estimator: its tokens are trained with this.
-- Grain: one row per row of `returns` that acted: per (policy, rollout), or per (policy, agent, step, rollout) if rewards are given to calls.
-- `left_out` is NULL if it trains.
-- Inputs: returns, estimates (what the estimators returned, each for the policies that name it), policies (min_spread).
-- Rule: a group whose returns at a step differ by less than the policy's `min_spread` is left out, whatever its estimator. Divided by a small
-- deviation, small differences of the reward would count as much as right and wrong.
WITH compared AS (
    SELECT *, max(return) OVER alike - min(return) OVER alike AS spread
    FROM returns
    WINDOW alike AS (PARTITION BY policy, group_id, agent, step)
),
judged AS (
    SELECT
        compared.policy,
        compared.group_id,
        compared.rollout_id,
        compared.attempt_id,
        compared.agent,
        compared.step,
        compared.reward,
        compared.return,
        estimates.group_rollouts,
        estimates.group_mean,
        estimates.group_std,
        estimates.fell_back,
        estimates.advantage,
        CASE
            WHEN compared.group_id IS NULL THEN 'no_group'
            WHEN NOT (isfinite(estimates.group_mean) AND isfinite(estimates.group_std)) THEN 'advantage_not_finite'
            WHEN estimates.left_out IS NOT NULL THEN estimates.left_out
            WHEN compared.spread < policies.min_spread THEN 'little_spread'
            WHEN estimates.advantage IS NULL THEN 'no_advantage'
            WHEN NOT abs(estimates.advantage) < 3e38 THEN 'advantage_not_finite' -- NaN is above every number
        END AS left_out
    FROM compared
    JOIN policies USING (policy)
    LEFT JOIN estimates USING (policy, group_id, agent, step, rollout_id, attempt_id)
    WHERE compared.acted
)
SELECT * REPLACE (CASE WHEN left_out IS NULL THEN advantage END AS advantage)
FROM judged
ORDER BY policy, group_id, rollout_id, agent, step
