-- Spans came too late for their epoch, or could not be decoded: nothing that is trained has read them.
-- Grain: one row per (epoch, mode). Parameters: run. Inputs: epochs, epoch_manifests.
-- Rule: a warning if more than one rollout in twenty may lack a span. Nothing is reported while an epoch is graded, because its seal then moves behind
-- the rewards.
-- Remedy: Let the agent's process flush its exporter before it ends (`provider.shutdown()`); why spans were rejected is in table rejections.
-- Evidence: FROM late_and_rejected(p_run := $run)
WITH limits AS (
    SELECT 0.05 AS many
)
SELECT
    epochs.epoch,
    epochs.mode,
    NULL::VARCHAR AS policy,
    CASE WHEN late + rejected > many * rollouts THEN 'warning' ELSE 'note' END AS severity,
    format('{} spans came after the epoch was sealed, {} could not be decoded; {} rollouts', late, rejected, rollouts) AS what
FROM epochs
JOIN epoch_manifests AS manifests USING (run, epoch, mode)
CROSS JOIN limits
WHERE run = $run AND late + rejected > 0 AND NOT (json_exists(manifests.stages, '$.rollouts') AND NOT json_exists(manifests.stages, '$.rewards'))
