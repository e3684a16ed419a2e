-- How much better than expected each rollout did, by each policy's estimator: what its tokens are trained with.
-- Grain: one row per row of `returns` that acted: per (policy, rollout), or per (policy, agent, step, rollout) where rewards
-- are given to calls. `left_out` is NULL where it trains.
-- Inputs: returns, estimates (what the estimators returned, each for the policies that name it).
WITH judged AS (
    SELECT
        returns.policy,
        returns.group_id,
        returns.rollout_id,
        returns.attempt_id,
        returns.agent,
        returns.step,
        returns.reward,
        returns.return,
        estimates.group_rollouts,
        estimates.group_mean,
        estimates.group_std,
        estimates.advantage,
        CASE
            WHEN returns.group_id IS NULL THEN 'no_group'
            WHEN NOT (isfinite(estimates.group_mean) AND isfinite(estimates.group_std)) THEN 'advantage_not_finite'
            WHEN estimates.left_out IS NOT NULL THEN estimates.left_out
            WHEN estimates.advantage IS NULL THEN 'no_advantage'
            WHEN NOT abs(estimates.advantage) < 3e38 THEN 'advantage_not_finite' -- NaN is above every number
        END AS left_out
    FROM returns
    LEFT JOIN estimates USING (policy, group_id, agent, step, rollout_id, attempt_id)
    WHERE returns.acted
)
SELECT * REPLACE (CASE WHEN left_out IS NULL THEN advantage END AS advantage)
FROM judged
ORDER BY policy, group_id, rollout_id, agent, step
