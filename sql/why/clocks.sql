-- A clock is off: spans end after the gateway received them.
-- Grain: one row per (epoch, mode). Parameters: run. Inputs: spans, rollouts.
-- Rule: spans that the gateway did not write itself, and that end later than the tolerated difference of two clocks. If calls have to be given to
-- agents by time, differences of up to `forgiven` seconds are estimated; larger ones are not.
-- Remedy: Let the machines of the agents and of the gateway keep one time (NTP, chrony); calls that declare their parent need no clock.
-- Evidence: SELECT rollouts.epoch, rollouts.mode, spans.rollout_id, spans.attempt_id, spans.name, spans.instrumentation, (spans.end_ns - spans.received_ns) / 1e9 AS seconds_ahead FROM spans JOIN rollouts USING (rollout_id, attempt_id) WHERE rollouts.run = $run AND spans.sender IS DISTINCT FROM 'gateway' AND spans.end_ns > spans.received_ns + clock_tolerance_ns()
WITH limits AS (
    SELECT 2.0 AS forgiven
),
ahead AS (
    SELECT rollouts.epoch, rollouts.mode, count(*) AS spans, count(DISTINCT spans.rollout_id) AS rollouts, max(spans.end_ns - spans.received_ns) / 1e9 AS seconds
    FROM spans
    JOIN rollouts USING (rollout_id, attempt_id)
    WHERE rollouts.run = $run
        AND spans.sender IS DISTINCT FROM 'gateway'
        AND spans.received_ns > 0
        AND spans.end_ns > spans.received_ns + clock_tolerance_ns()
    GROUP BY ALL
)
SELECT
    epoch,
    mode,
    NULL::VARCHAR AS policy,
    CASE WHEN seconds > forgiven THEN 'warning' ELSE 'note' END AS severity,
    format('{} spans of {} rollouts end up to {:.1f} s after they were received', spans, rollouts, seconds) AS what
FROM ahead
CROSS JOIN limits
