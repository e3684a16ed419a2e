-- Spans came too late for their epoch, or could not be decoded: nothing that is trained has read them.
-- Grain: one row per (epoch, mode). Parameters: run. Inputs: epochs.
-- Rule: a warning where more than one rollout in twenty could lack one.
-- Remedy: Let the agent's process flush its exporter before it ends (`provider.shutdown()`); why spans were rejected is in table rejections.
-- Evidence: FROM late_and_rejected(p_run := $run)
WITH limits AS (
    SELECT 0.05 AS many
)
SELECT
    epoch,
    mode,
    NULL::VARCHAR AS policy,
    CASE WHEN late + rejected > many * rollouts THEN 'warning' ELSE 'note' END AS severity,
    format('{} spans came after the epoch was sealed, {} could not be decoded; {} rollouts', late, rejected, rollouts) AS what
FROM epochs
CROSS JOIN limits
WHERE run = $run AND late + rejected > 0
