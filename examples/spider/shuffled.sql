-- GRPO by shuffled returns: the control of an experiment. What it gains is not learned from the reward.
-- Grain: one row per row of `returns` that acted. `left_out` is NULL where it trains.
-- Inputs: returns.
-- Rule: within a group the returns go to other rollouts, in an order that a hash of their ids gives; then as sql/advantages/grpo.sql.
WITH dealt AS (
    SELECT
        *,
        row_number() OVER (PARTITION BY policy, group_id, agent, step ORDER BY rollout_id) AS place,
        row_number() OVER (PARTITION BY policy, group_id, agent, step ORDER BY md5(rollout_id), rollout_id) AS other_place
    FROM returns
),
shuffled AS (
    SELECT dealt.* EXCLUDE (place, other_place) REPLACE (other.return AS return)
    FROM dealt
    JOIN dealt AS other
        ON dealt.policy = other.policy AND dealt.group_id = other.group_id AND dealt.step = other.step
        AND dealt.agent IS NOT DISTINCT FROM other.agent AND dealt.place = other.other_place
),
groups AS (
    SELECT policy, group_id, agent, step, list_sort(list(return)) AS returns FROM shuffled GROUP BY ALL
),
moments AS (
    SELECT
        * EXCLUDE (returns),
        len(returns) AS rollouts,
        list_avg(returns) AS mean,
        CASE WHEN returns[1] < returns[-1] THEN list_stddev_samp(returns) ELSE 0 END AS spread
    FROM groups
)
SELECT
    shuffled.* EXCLUDE (acted),
    moments.rollouts AS group_rollouts,
    moments.mean AS group_mean,
    moments.spread AS group_std,
    CASE WHEN moments.rollouts > 1 AND moments.spread > 0 THEN (shuffled.return - moments.mean) / (moments.spread + 1e-4) END AS advantage,
    CASE WHEN moments.rollouts < 2 THEN 'group_of_one' WHEN moments.spread = 0 THEN 'no_spread' END AS left_out
FROM shuffled
JOIN moments
    ON shuffled.policy = moments.policy AND shuffled.group_id = moments.group_id AND shuffled.step = moments.step
    AND shuffled.agent IS NOT DISTINCT FROM moments.agent
WHERE shuffled.acted
