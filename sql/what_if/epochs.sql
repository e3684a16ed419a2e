-- Epoch by epoch: rewards, groups that train, tokens that train, and the share of the gradient that changes hands.
-- Grain: one row per (epoch, policy). Inputs: moved. Parameters: none.
SELECT
    epoch,
    policy,
    avg(reward_before) AS reward_before,
    avg(reward_after) AS reward_after,
    count(DISTINCT group_id) AS groups,
    count(DISTINCT group_id) FILTER (tokens_before > 0) AS groups_before,
    count(DISTINCT group_id) FILTER (tokens_after > 0) AS groups_after,
    sum(tokens_before)::BIGINT AS tokens_before,
    sum(tokens_after)::BIGINT AS tokens_after,
    CASE
        WHEN sum(tokens_before) > 0 AND sum(tokens_after) > 0 THEN sum(moved)
        WHEN sum(tokens_before) > 0 OR sum(tokens_after) > 0 THEN 1.0
        ELSE 0.0
    END AS moved
FROM moved
GROUP BY epoch, policy
ORDER BY epoch, policy
