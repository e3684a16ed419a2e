-- What changed between two epochs, measure by measure.
-- Grain: one row per measure. Inputs: rollouts, calls, tool_calls, policy_calls, merges, attempts.
-- Parameters: p_run (default: the newest run that trains), p_after (default: its last training epoch), p_before (default:
-- the epoch before that).
WITH chosen AS (
    SELECT run, coalesce(p_after, max(epoch)) AS after, coalesce(p_before, after - 1) AS before
    FROM attempts
    WHERE mode = 'train' AND (p_run IS NULL OR run = p_run)
    GROUP BY run
    ORDER BY max(started) DESC
    LIMIT 1
),
measures AS (
    SELECT epoch, unnest([
        {place: 1, measure: 'rollouts', value: count(*)::DOUBLE},
        {place: 2, measure: 'mean reward', value: avg(reward)},
        {place: 3, measure: 'share right', value: avg(success::INTEGER)},
        {place: 4, measure: 'share failed', value: avg((outcome <> 'ok')::INTEGER)},
        {place: 5, measure: 'calls a rollout', value: avg(calls)},
        {place: 6, measure: 'response tokens a rollout', value: avg(response_tokens)},
        {place: 7, measure: 'seconds a rollout, median', value: median(seconds)}
    ], recursive := true)
    FROM rollouts JOIN chosen USING (run)
    WHERE mode = 'train' AND state = 'counts' AND epoch IN (before, after)
    GROUP BY epoch
    UNION ALL
    SELECT epoch, unnest([
        {place: 8, measure: 'response tokens a call', value: avg(response_tokens)},
        {place: 9, measure: 'share of calls cut off by length', value: avg(contains(coalesce(finish_reasons, ''), 'length')::INTEGER)},
        {place: 10, measure: 'milliseconds a call, median', value: median(milliseconds)}
    ], recursive := true)
    FROM calls JOIN chosen USING (run)
    WHERE mode = 'train' AND twin_of IS NULL AND epoch IN (before, after)
    GROUP BY epoch
    UNION ALL
    SELECT epoch, unnest([
        {place: 11, measure: 'tool calls', value: count(*)::DOUBLE},
        {place: 12, measure: 'share of tool calls that failed', value: avg(failed::INTEGER)}
    ], recursive := true)
    FROM tool_calls JOIN chosen USING (run)
    WHERE mode = 'train' AND epoch IN (before, after)
    GROUP BY epoch
    UNION ALL
    SELECT epoch, 13, 'share of calls left out by themselves', avg((left_out IS NOT NULL)::INTEGER)
    FROM policy_calls JOIN chosen USING (run)
    WHERE epoch IN (before, after)
    GROUP BY epoch
    UNION ALL
    SELECT epoch, 14, 'share of calls that continue a sequence', avg((reason = 'continues')::INTEGER)
    FROM merges JOIN chosen USING (run)
    WHERE epoch IN (before, after)
    GROUP BY epoch
)
SELECT
    any_value(chosen.run) AS run,
    measure,
    any_value(value) FILTER (epoch = before) AS before,
    any_value(value) FILTER (epoch = after) AS after,
    any_value(value) FILTER (epoch = after) - any_value(value) FILTER (epoch = before) AS change
FROM measures
CROSS JOIN chosen
GROUP BY place, measure
ORDER BY place
