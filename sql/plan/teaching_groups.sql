-- How many of an epoch's groups teach: any rollout of them trains a policy.
-- Grain: one row. Inputs: advantages.
SELECT count(DISTINCT group_id) AS groups FROM advantages WHERE left_out IS NULL
