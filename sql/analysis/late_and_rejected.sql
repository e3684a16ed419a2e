-- Spans that arrived after their epoch was sealed, and those that could not be decoded.
-- Grain: one row per (late or rejected, run, epoch, mode, what). Inputs: spans, attempts, epoch_manifests, rejections.
-- Parameters: p_run, p_epoch (default: all).
-- Late spans are kept, and nothing derived reads them. Rejected ones are in `spool/rejected/`, with the reason.
-- `what`: the late span's op, or the reason. `seconds_late`: how long after the rollout's end the last of them arrived.
SELECT
    'late' AS problem,
    attempts.run,
    attempts.epoch,
    attempts.mode,
    spans.op AS what,
    count(*) AS spans,
    count(DISTINCT spans.rollout_id) AS rollouts,
    max(spans.received_ns / 1e9 - epoch_ns(attempts.ended) / 1e9) AS seconds_late,
    min(spans.rollout_id) AS example
FROM spans
JOIN attempts USING (rollout_id, attempt_id)
JOIN epoch_manifests AS manifests
    ON manifests.run = attempts.run AND manifests.epoch = attempts.epoch AND manifests.mode = attempts.mode
WHERE spans.record_offset >= manifests.sealed_offset
    AND (p_run IS NULL OR attempts.run = p_run)
    AND (p_epoch IS NULL OR attempts.epoch = p_epoch)
GROUP BY ALL
UNION ALL
SELECT
    'rejected',
    attempts.run,
    attempts.epoch,
    attempts.mode,
    rejections.reason,
    sum(rejections.spans)::BIGINT,
    count(DISTINCT rejections.rollout_id),
    NULL,
    min(rejections.rollout_id)
FROM rejections
LEFT JOIN attempts USING (rollout_id, attempt_id)
WHERE (p_run IS NULL OR attempts.run = p_run) AND (p_epoch IS NULL OR attempts.epoch = p_epoch)
GROUP BY ALL
ORDER BY ALL
