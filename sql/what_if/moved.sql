-- How a run's training would have differed: the push of each rollout and agent, before and after.
-- Grain: one row per (epoch, policy, agent, rollout_id) of either. Inputs: pushed_before, pushed_after. Parameters: none.
-- Rule: `share_before` and `share_after` are shares of the epoch's gradient: the push, with its sign, over the sum of all sizes. `moved` is half of
-- the size of their difference, so the sum over an epoch is from 0 (nothing changes) to 1 (all of it goes to others, or changes its sign).
WITH shares AS (
    SELECT *, push / nullif(sum(abs(push)) OVER (PARTITION BY side, epoch, policy), 0) AS share
    FROM (SELECT 'before' AS side, * FROM pushed_before UNION ALL SELECT 'after', * FROM pushed_after)
)
SELECT
    epoch,
    policy,
    agent,
    any_value(task_id) AS task_id,
    any_value(group_id) AS group_id,
    rollout_id,
    any_value(reward) FILTER (side = 'before') AS reward_before,
    any_value(reward) FILTER (side = 'after') AS reward_after,
    coalesce(sum(tokens) FILTER (side = 'before'), 0)::BIGINT AS tokens_before,
    coalesce(sum(tokens) FILTER (side = 'after'), 0)::BIGINT AS tokens_after,
    coalesce(sum(share) FILTER (side = 'before'), 0) AS share_before,
    coalesce(sum(share) FILTER (side = 'after'), 0) AS share_after,
    abs(share_after - share_before) / 2 AS moved
FROM shares
GROUP BY epoch, policy, agent, rollout_id
ORDER BY epoch, policy, agent, rollout_id
