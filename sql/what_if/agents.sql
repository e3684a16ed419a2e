-- The agents whose calls would have weighed more, or less, over all epochs.
-- Grain: one row per (policy, agent). Inputs: moved. Parameters: none.
-- Rule: `weight_before` and `weight_after` are the agent's part of the gradient's size.
SELECT
    policy,
    agent,
    sum(abs(share_before)) / nullif(sum(sum(abs(share_before))) OVER (PARTITION BY policy), 0) AS weight_before,
    sum(abs(share_after)) / nullif(sum(sum(abs(share_after))) OVER (PARTITION BY policy), 0) AS weight_after,
    sum(tokens_before)::BIGINT AS tokens_before,
    sum(tokens_after)::BIGINT AS tokens_after
FROM moved
GROUP BY policy, agent
ORDER BY policy, abs(coalesce(weight_after, 0) - coalesce(weight_before, 0)) DESC, agent
