-- Which call each reward went to, if rewards are given to calls (`reward.assign`), or why it went to none.
-- Grain: one row per (run, epoch, node, reward_name, source, policy, agent). Inputs: stored.reward_steps.
SELECT
    * REPLACE (nullif(agent, '') AS agent, call_id_of(run, epoch, call_id) AS call_id)
    RENAME (name AS reward_name, value AS reward)
FROM stored.reward_steps
