-- Agents that go in circles: the same tool with the same arguments, again and again in one rollout.
-- Grain: one row per (rollout, tool, arguments) of a run that occurs more than once. Inputs: tool_calls, rollouts, attempts.
-- Parameters: p_run (default: the newest run), p_epoch (default: all).
-- `different_results` 1: the tool returned the same each time.
WITH chosen AS (
    SELECT run FROM attempts WHERE p_run IS NULL OR run = p_run ORDER BY started DESC LIMIT 1
)
SELECT
    rollouts.run,
    rollouts.epoch,
    rollouts.mode,
    tools.rollout_id,
    tools.agent,
    tools.tool_name,
    tools.tool_arguments,
    count(*) AS times,
    count(DISTINCT tools.tool_result) AS different_results,
    count(*) FILTER (tools.failed) AS failed,
    any_value(rollouts.reward) AS reward
FROM tool_calls AS tools
JOIN rollouts USING (rollout_id, attempt_id)
JOIN chosen ON chosen.run = rollouts.run
WHERE tools.tool_arguments IS NOT NULL AND (p_epoch IS NULL OR rollouts.epoch = p_epoch)
GROUP BY rollouts.run, rollouts.epoch, rollouts.mode, tools.rollout_id, tools.agent, tools.tool_name, tools.tool_arguments
HAVING count(*) > 1
ORDER BY times DESC, tools.rollout_id, tools.tool_name, tools.tool_arguments
