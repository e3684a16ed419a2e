-- How fast calls were, hour by hour: shows a machine that slows down, or a server that was restarted.
-- Grain: one row per (hour, policy or model). Inputs: calls.
-- Parameters: p_run (default: all).
-- Hours are UTC. `tokens_a_second_a_call`: sampled tokens divided by the seconds of their calls, which may have run in parallel.
SELECT
    date_trunc('hour', started) AS hour,
    coalesce(policy, model) AS model,
    count(*) AS calls,
    count(*) FILTER (status = 'error') AS failed,
    quantile_cont(first_token_ms, 0.5) AS first_token_p50_ms,
    quantile_cont(milliseconds, 0.5) AS p50_ms,
    quantile_cont(milliseconds, 0.9) AS p90_ms,
    quantile_cont(milliseconds, 0.99) AS p99_ms,
    sum(response_tokens) * 1e3 / nullif(sum(milliseconds) FILTER (response_tokens IS NOT NULL), 0) AS tokens_a_second_a_call
FROM calls
WHERE twin_of IS NULL AND (p_run IS NULL OR run = p_run)
GROUP BY ALL
ORDER BY hour, model
