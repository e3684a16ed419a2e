-- How much better than expected each rollout did, by each policy's estimator: what its tokens are trained with.
-- Grain: one row per (run, epoch, policy, rollout_id, agent, step). Inputs: stored.advantages.
-- Rule: joins call_returns; `agent` and `step` are NULL where they are there.
SELECT * REPLACE (nullif(agent, '') AS agent, nullif(step, 0) AS step) FROM stored.advantages
