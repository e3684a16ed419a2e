-- Every reward as it was emitted, by the agent or by the grader.
-- Grain: one row per reward span. Inputs: spans
SELECT
    rollout_id,
    attempt_id,
    reward_name,
    reward,
    coalesce(reward_source, 'agent') AS source,
    error,
    make_timestamp_ns(coalesce(end_ns, start_ns)) AS emitted
FROM spans
WHERE op = 'reward' OR reward IS NOT NULL
