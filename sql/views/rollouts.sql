-- Every execution of a rollout that has ended, with its reward: there as soon as its spans are decoded.
-- Grain: one row per attempt. Inputs: spans
WITH rewards AS (
    SELECT rollout_id, attempt_id, max_by(reward, (reward_name = 'reward', coalesce(end_ns, start_ns))) AS reward
    FROM spans
    WHERE reward IS NOT NULL AND isfinite(reward)
    GROUP BY ALL
),
calls AS (
    SELECT rollout_id, attempt_id, count(*) AS calls, sum(output_tokens) AS output_tokens
    FROM (SELECT DISTINCT rollout_id, attempt_id, trace_id, span_id, output_tokens FROM spans WHERE policy IS NOT NULL)
    GROUP BY ALL
),
roots AS (
    SELECT DISTINCT ON (rollout_id, attempt_id) *
    FROM spans
    WHERE op = 'rollout'
    ORDER BY rollout_id, attempt_id, record_offset
)
SELECT
    roots.run,
    roots.epoch,
    roots.mode,
    roots.group_id,
    roots.task_id,
    roots.rollout_id,
    roots.attempt_id,
    roots.outcome,
    roots.error,
    rewards.reward,
    coalesce(calls.calls, 0) AS calls,
    coalesce(calls.output_tokens, 0)::BIGINT AS output_tokens,
    (roots.end_ns - roots.start_ns) / 1e9 AS seconds,
    make_timestamp_ns(roots.start_ns) AS started,
    make_timestamp_ns(roots.end_ns) AS ended,
    roots.task,
    roots.output
FROM roots
LEFT JOIN rewards USING (rollout_id, attempt_id)
LEFT JOIN calls USING (rollout_id, attempt_id)
