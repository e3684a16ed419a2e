-- Rewards that cannot be used: the grader failed, or somebody gave one who may not.
-- Grain: one row per (epoch, mode, reason). Parameters: run. Inputs: bad_rewards, rollouts, epochs, spans.
-- Remedy: Mend the grader, then `lightning-flows regrade`: it grades the recorded rollouts again and rolls out nothing.
-- Evidence: SELECT bad.*, spans.error FROM bad_rewards AS bad LEFT JOIN spans USING (rollout_id, attempt_id, span_id) WHERE bad.run = $run
WITH limits AS (
    SELECT 0.05 AS many, 0.5 AS most
),
bad AS (
    SELECT
        bad_rewards.epoch,
        coalesce(rollouts.mode, 'train') AS mode,
        bad_rewards.reason,
        count(*) AS rewards,
        mode(spans.error) AS error
    FROM bad_rewards
    LEFT JOIN rollouts USING (run, epoch, rollout_id, attempt_id)
    LEFT JOIN spans
        ON spans.op = 'reward'
        AND spans.rollout_id = bad_rewards.rollout_id
        AND spans.attempt_id = bad_rewards.attempt_id
        AND spans.span_id = bad_rewards.span_id
    WHERE bad_rewards.run = $run
    GROUP BY ALL
)
SELECT
    bad.epoch,
    bad.mode,
    NULL::VARCHAR AS policy,
    CASE WHEN rewards > most * rollouts THEN 'error' WHEN rewards > many * rollouts THEN 'warning' ELSE 'note' END AS severity,
    format(
        '{} rewards of {} rollouts cannot be used ({}){}',
        rewards, rollouts, bad.reason, CASE WHEN error IS NULL THEN '' ELSE ': ' || left(error, 200) END
    ) AS what
FROM bad
JOIN (FROM epochs WHERE run = $run) AS epochs USING (epoch, mode)
CROSS JOIN limits
