-- The rewards that count for policies with rewards of their own, and their worth to each.
-- Grain: one row per (run, epoch, policy, node, reward_name, source). Inputs: stored.policy_rewards.
SELECT * EXCLUDE (emitted_ns) RENAME (name AS reward_name, value AS reward), make_timestamp_ns(emitted_ns) AS emitted
FROM stored.policy_rewards
