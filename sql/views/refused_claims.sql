-- What spans claim and their senders may not say: it counts for nothing, and this is where it is seen.
-- Grain: one row per span with such a claim. Inputs: spans, attempts.
-- Rule: `refused` is the attribute: of the gateway's (`lightning.policy`, token ids, …) or the runner's (`lightning.run`,
-- `lightning.output`, …), `lightning.reward.source` where an attempt poses as a grader, `lightning.rollout_id` where nobody (no
-- token, no proof, not the secret) names a rollout. `rollout_id` and `attempt_id` are whose the span is, or in that last case whose
-- it says it is; `reward` is what it would have given.
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
