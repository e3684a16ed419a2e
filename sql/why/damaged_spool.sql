-- The disk lost spans that were acknowledged: a record of the spool could not be read back.
-- Grain: one row per (epoch, mode). Parameters: run. Inputs: rejections, epoch_manifests.
-- Rule: any such record. It is not known which rollouts lack spans, only the epoch that was open when the record was written.
-- Remedy: Look at the disk (`dmesg`, SMART) and restore `spool/` from a copy if there is one; the bytes are in `spool/rejected/`. Repeat the epoch (`--from rollouts`) where its rollouts matter.
-- Evidence: SELECT * FROM rejections WHERE reason = 'acknowledged, and damaged on the disk since'
WITH damaged AS (
    SELECT record_offset FROM rejections WHERE reason = 'acknowledged, and damaged on the disk since'
)
SELECT
    epochs.epoch,
    epochs.mode,
    NULL::VARCHAR AS policy,
    'error' AS severity,
    format('{} requests of spans were damaged on the disk after they had been acknowledged', count(*)) AS what
FROM damaged
JOIN epoch_manifests AS epochs
    ON damaged.record_offset >= epochs.opened_offset
    AND (epochs.sealed_offset IS NULL OR damaged.record_offset < epochs.sealed_offset)
WHERE epochs.run = $run
GROUP BY ALL
