-- Every reward of the attempts that count, and why some of them do not count.
-- Grain: one row per (run, epoch, node, reward_name, source). Inputs: stored.rewards_given.
-- Rule: as derived with the settings; view `rewards` has them as they were emitted.
SELECT * EXCLUDE (emitted_ns) RENAME (name AS reward_name, value AS reward), make_timestamp_ns(emitted_ns) AS emitted
FROM stored.rewards_given
