-- The reward of every rollout that counts, for the policies that name rewards of their own.
-- Grain: one row per (policy, rollout), for such policies alone. `reward` is NULL if the rollout has none for this policy; `left_out` says why.
-- Inputs: policy_rewards, policy_weights, rollout_rewards, bucket.
-- Rule: the weighted sum of the rewards that count; NULL without any of the policy's names and without a failure reward.
WITH sums AS (
    -- Sorted lists: a sum must not depend on the order of its input.
    SELECT
        policy,
        rollout_id,
        attempt_id,
        list_sum(list_sort(list(value * weight))) AS total,
        bool_or(source <> 'air') AS given
    FROM policy_rewards
    WHERE counts
    GROUP BY ALL
),
judged AS (
    SELECT
        own.policy,
        bucket.attempt,
        rewards.rollout_id,
        rewards.attempt_id,
        sums.total,
        CASE
            WHEN rewards.left_out = 'failed_attempt' THEN 'failed_attempt'
            WHEN sums.given IS DISTINCT FROM true THEN 'no_reward'
        END AS left_out
    FROM rollout_rewards AS rewards
    JOIN bucket USING (rollout_id, attempt_id)
    CROSS JOIN (SELECT DISTINCT policy FROM policy_weights) AS own
    LEFT JOIN sums
        ON sums.policy = own.policy AND sums.rollout_id = rewards.rollout_id AND sums.attempt_id = rewards.attempt_id
)
SELECT policy, attempt, rollout_id, attempt_id, CASE WHEN left_out IS NULL THEN total END AS reward, left_out
FROM judged
ORDER BY policy, rollout_id
