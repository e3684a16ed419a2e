-- Which agents were there, and how many of their calls train which policy.
-- Grain: one row per (run, epoch, agent, policy). Inputs: policy_calls
SELECT
    run,
    epoch,
    coalesce(agent, '(no name)') AS agent,
    policy,
    count(*) AS calls,
    count(*) FILTER (WHERE left_out IS NULL) AS trained_calls,
    sum(response_tokens)::BIGINT AS response_tokens
FROM policy_calls
GROUP BY ALL
ORDER BY run, epoch, agent, policy
