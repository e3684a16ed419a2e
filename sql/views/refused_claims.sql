-- Attributes that a span's sender may not set: they count for nothing, and this view shows them.
-- Grain: one row per span with such an attribute. Inputs: spans, attempts.
-- Rule: `refused` is the attribute: the gateway's (`lightning.policy`, token ids, …), the runner's (`lightning.run`, `lightning.output`, …),
-- `lightning.reward.source` if an attempt poses as a grader, or `lightning.rollout_id` if a sender without token, proof and secret names a
-- rollout. `rollout_id` and `attempt_id` are those of the span, in the last case those that it names; `reward` is what it would have given.
WITH refused AS (
    SELECT
        coalesce(rollout_id, resource['lightning.rollout_id'], resource['agentlightning.rollout_id'], declared_rollout_id) AS rollout_id,
        coalesce(attempt_id, resource['lightning.attempt_id'], resource['agentlightning.attempt_id'], declared_attempt_id) AS attempt_id,
        trace_id,
        span_id,
        name,
        sender,
        refused,
        reward,
        make_timestamp_ns(received_ns) AS received
    FROM spans
    WHERE refused IS NOT NULL
)
SELECT
    attempts.run,
    attempts.epoch,
    attempts.mode,
    refused.*
FROM refused
LEFT JOIN attempts USING (rollout_id, attempt_id)
