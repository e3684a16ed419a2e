-- Which tools fail, how often, and with which messages.
-- Grain: one row per tool of a run, over its epochs. Inputs: tool_calls, attempts.
-- Parameters: p_run (default: the newest run), p_epoch (default: all).
-- Tools that never fail come last. `p50_ms`: median milliseconds of calls that failed, and of those that did not.
WITH chosen AS (
    SELECT run FROM attempts WHERE p_run IS NULL OR run = p_run ORDER BY started DESC LIMIT 1
)
SELECT
    run,
    tool_name,
    count(*) AS calls,
    count(*) FILTER (failed) AS failed,
    avg(failed::INTEGER) AS share_failed,
    count(DISTINCT rollout_id) FILTER (failed) AS rollouts_hit,
    mode(coalesce(error, tool_result)) FILTER (failed) AS most_frequent_error,
    median(milliseconds) AS p50_ms,
    mode(tool_arguments) FILTER (failed) AS most_frequent_arguments_of_a_failure
FROM tool_calls
JOIN chosen USING (run)
WHERE p_epoch IS NULL OR epoch = p_epoch
GROUP BY run, tool_name
ORDER BY share_failed DESC, calls DESC, tool_name
