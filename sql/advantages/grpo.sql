-- GRPO: a rollout's reward against the mean of its group, in standard deviations.
-- Grain: one row per (policy, rollout) in which the policy acted. `left_out` is NULL where it trains.
-- Inputs: triplets.
-- Rule: A = (r - mean) / (std + 1e-4) over the rollouts of the group (Shao et al. 2024, DeepSeekMath), sample standard
-- deviation. Once per rollout, however many calls it made. Groups of one and groups without spread are left out.
WITH acted AS (
    SELECT DISTINCT policy, group_id, rollout_id, attempt_id, reward FROM triplets
),
-- Sorted lists: sums and deviations must not depend on the order of the input.
groups AS (
    SELECT policy, group_id, list_sort(list(reward)) AS rewards FROM acted GROUP BY policy, group_id
),
moments AS (
    SELECT
        policy,
        group_id,
        len(rewards) AS rollouts,
        list_avg(rewards) AS mean,
        CASE WHEN len(rewards) > 1 AND rewards[1] < rewards[-1] THEN list_stddev_samp(rewards) ELSE 0 END AS spread
    FROM groups
)
SELECT
    acted.policy,
    acted.group_id,
    acted.rollout_id,
    acted.attempt_id,
    acted.reward,
    moments.rollouts AS group_rollouts,
    moments.mean AS group_mean,
    moments.spread AS group_std,
    CASE WHEN moments.rollouts > 1 AND moments.spread > 0 THEN (acted.reward - moments.mean) / (moments.spread + 1e-4) END AS advantage,
    CASE
        WHEN moments.rollouts < 2 THEN 'group_of_one'
        WHEN moments.spread = 0 THEN 'no_spread'
    END AS left_out
FROM acted
JOIN moments USING (policy, group_id)
ORDER BY acted.policy, acted.group_id, acted.rollout_id
