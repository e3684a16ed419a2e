-- How many more groups an epoch rolls out in place of groups that teach nothing.
-- Grain: one row. Parameters: wanted (groups that are to teach), spare (groups that may still be added). Inputs: advantages.
-- Rule: a group teaches if any rollout of it trains a policy.
SELECT
    count(DISTINCT group_id) AS teaching,
    greatest(least($wanted - count(DISTINCT group_id), $spare), 0)::BIGINT AS missing
FROM advantages
WHERE left_out IS NULL
