-- The reward of a run's training rollouts as training goes on, four epochs a point.
-- Grain: one row per four epochs. Inputs: rollouts. Parameter: run.
-- Rule: `rollouts`: how many had been sampled at the end of the four epochs. A group's rollouts are of one task, so the groups are what is
-- drawn: `low` to `high` is the mean of their means, less and plus 1.96 standard errors.
WITH groups AS (
    SELECT epoch // 4 AS point, group_id, avg(reward) AS reward, count(*) AS rollouts
    FROM rollouts
    WHERE run = $run AND mode = 'train' AND state = 'counts' AND reward IS NOT NULL
    GROUP BY epoch, group_id
),
points AS (
    SELECT point, sum(rollouts) AS own, avg(reward) AS reward, 1.96 * stddev_samp(reward) / sqrt(count(*)) AS half
    FROM groups
    GROUP BY point
)
SELECT sum(own) OVER (ORDER BY point)::BIGINT AS rollouts, reward, greatest(reward - half, 0) AS low, least(reward + half, 1) AS high
FROM points
ORDER BY point
