-- How long calls, first tokens, tools and rollouts took.
-- Grain: one row per (run, epoch, mode, kind, agent, name). `name` is the policy (the model, if no policy sampled the
-- call) or the tool; rollouts have neither name nor agent. Milliseconds. Inputs: calls, tool_calls, attempts.
-- Rule: a call seen twice is counted once, as the gateway saw it. Spans without an end are left out.
WITH called AS (
    SELECT
        run,
        epoch,
        mode,
        agent,
        coalesce(policy, model) AS name,
        count(milliseconds) AS n,
        quantile_cont(milliseconds, [0.5, 0.9, 0.99, 1.0]) AS q,
        count(first_token_ms) AS first_n,
        quantile_cont(first_token_ms, [0.5, 0.9, 0.99, 1.0]) AS first_q
    FROM calls
    WHERE twin_of IS NULL
    GROUP BY ALL
),
steps AS (
    SELECT run, epoch, mode, 'call' AS kind, agent, name, n, q FROM called
    UNION ALL
    SELECT run, epoch, mode, 'first token', agent, name, first_n, first_q FROM called
    UNION ALL
    SELECT
        run, epoch, mode, 'tool', agent, tool_name, count(milliseconds), quantile_cont(milliseconds, [0.5, 0.9, 0.99, 1.0])
    FROM tool_calls
    GROUP BY ALL
    UNION ALL
    SELECT
        run, epoch, mode, 'rollout', NULL, NULL, count(seconds), quantile_cont(seconds * 1e3, [0.5, 0.9, 0.99, 1.0])
    FROM attempts
    GROUP BY ALL
)
SELECT run, epoch, mode, kind, agent, name, n, q[1] AS p50_ms, q[2] AS p90_ms, q[3] AS p99_ms, q[4] AS max_ms
FROM steps
WHERE n > 0
ORDER BY run, epoch, mode, kind, agent, name
