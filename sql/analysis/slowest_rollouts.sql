-- The slowest rollouts, and where their time went.
-- Grain: one row per rollout of a run, slowest first. Inputs: rollouts, calls, tool_calls, attempts.
-- Parameters: p_run (default: the newest run), p_epoch (default: all).
-- Seconds in calls and tools are sums: with work in parallel they can exceed the rollout's own time.
WITH chosen AS (
    SELECT run FROM attempts WHERE p_run IS NULL OR run = p_run ORDER BY started DESC LIMIT 1
),
called AS (
    SELECT rollout_id, attempt_id, sum(milliseconds) / 1e3 AS call_seconds, max(milliseconds) / 1e3 AS longest_call
    FROM calls
    WHERE twin_of IS NULL
    GROUP BY ALL
),
tooled AS (
    SELECT rollout_id, attempt_id, count(*) AS tool_calls, sum(milliseconds) / 1e3 AS tool_seconds
    FROM tool_calls
    GROUP BY ALL
)
SELECT
    rollouts.run,
    rollouts.epoch,
    rollouts.mode,
    rollouts.rollout_id,
    rollouts.outcome,
    rollouts.reward,
    rollouts.seconds,
    rollouts.calls,
    called.call_seconds,
    called.longest_call,
    coalesce(tooled.tool_calls, 0) AS tool_calls,
    tooled.tool_seconds,
    greatest(rollouts.seconds - coalesce(called.call_seconds, 0) - coalesce(tooled.tool_seconds, 0), 0) AS rest
FROM rollouts
JOIN chosen USING (run)
LEFT JOIN called USING (rollout_id, attempt_id)
LEFT JOIN tooled USING (rollout_id, attempt_id)
WHERE rollouts.seconds IS NOT NULL AND (p_epoch IS NULL OR rollouts.epoch = p_epoch)
ORDER BY rollouts.seconds DESC, rollouts.rollout_id
