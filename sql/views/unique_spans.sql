-- Every span once: what counts and sums should read instead of `spans`.
-- Grain: one row per span. Inputs: spans, retries.
-- Rule: rows that repeat an earlier one are gone. No window over the wide columns, and joined by rollout: the rows of one
-- rollout are found without looking for retries among all.
SELECT spans.*
FROM spans
LEFT JOIN (FROM retries WHERE scoped) AS again USING (rollout_id, record_offset, record_index)
WHERE spans.rollout_id IS NOT NULL AND again.record_offset IS NULL
UNION ALL
SELECT spans.*
FROM spans
ANTI JOIN (FROM retries WHERE NOT scoped) AS again USING (record_offset, record_index)
WHERE spans.rollout_id IS NULL
