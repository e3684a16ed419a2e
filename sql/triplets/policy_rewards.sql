-- What the rewards are worth to the policies that name rewards of their own (`policies[].rewards`).
-- Grain: one row per (policy, reward) that such a policy counts; none for policies that `reward` rewards.
-- Inputs: rewards_given, policy_weights (policy, name, weight).
-- Rule: the last reward of each name counts, whether or not the run weighs the name too. Rewards that cannot be used at all (no number, a failed
-- attempt, reward_match) do not count. Rewards of rules (AIR) and the failure reward count for every policy.
WITH named AS (
    SELECT own.policy, given.* REPLACE (own.weight AS weight)
    FROM rewards_given AS given
    JOIN policy_weights AS own USING (name)
    WHERE given.source IN ('emitted', 'grader')
        AND (given.left_out IS NULL OR given.left_out IN ('no_weight', 'other_name'))
),
last_ones AS (
    -- As in rewards_given: a grader's is later than any other, and what has no time earlier.
    SELECT
        * REPLACE (
            row_number() OVER (
                PARTITION BY policy, rollout_id, attempt_id, name
                ORDER BY source = 'grader' DESC, coalesce(emitted_ns, -never_ns()) DESC, node DESC
            ) = 1 AS counts
        )
    FROM named
),
of_all AS (
    SELECT own.policy, given.*
    FROM rewards_given AS given
    CROSS JOIN (SELECT DISTINCT policy FROM policy_weights) AS own
    WHERE given.source IN ('air', 'failure')
)
SELECT policy, rollout_id, attempt_id, node, span_id, agent, ambiguous, name, source, value, weight, emitted_ns, counts
FROM (FROM last_ones UNION ALL FROM of_all)
ORDER BY policy, rollout_id, attempt_id, emitted_ns, node, source, name
