-- Rewards that cannot be used: no finite number, for an unknown rollout, or from a sender that may not give them.
-- Grain: one row per such reward. Inputs: stored.bad_rewards.
SELECT * RENAME (name AS reward_name, value AS reward) FROM stored.bad_rewards
