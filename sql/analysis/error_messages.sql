-- What went wrong, by message; numbers and ids are removed, so that similar messages count as one.
-- Grain: one row per (op, name, outcome, message). Inputs: errors.
-- Parameters: p_run, p_epoch (default: all).
-- `op` is the kind of the span that failed; `outcome` is its status, or how the attempt ended. Times are UTC.
SELECT
    op,
    name,
    outcome,
    regexp_replace(
        left(coalesce(message, '(no message)'), 200), '\b[0-9a-f]{8,}(-[0-9a-f]{4,})*\b|[0-9]+(\.[0-9]+)?', '#', 'g'
    ) AS message,
    count(*) AS times,
    count(DISTINCT rollout_id) AS rollouts,
    list_sort(list(DISTINCT agent) FILTER (agent IS NOT NULL)) AS agents,
    min(started) AS first,
    max(started) AS last,
    min(rollout_id) AS example
FROM errors
WHERE (p_run IS NULL OR run = p_run) AND (p_epoch IS NULL OR epoch = p_epoch)
GROUP BY ALL
ORDER BY times DESC, op, name, message
