-- What went wrong: failed attempts, calls, tools and other spans, and graders that gave no reward.
-- Grain: one row per span with an error. Inputs: spans, attempts, span_places.
-- Rule: status `error`; an attempt whose outcome is not `ok`; a reward span with a reason why there is no reward. An opened rollout has no root
-- until an epoch gives it one; until then the span that ends it counts.
SELECT
    attempts.run,
    attempts.epoch,
    attempts.mode,
    failed.rollout_id,
    failed.attempt_id,
    failed.trace_id,
    failed.span_id,
    failed.op,
    failed.name,
    coalesce(places.agent, failed.agent_name) AS agent,
    coalesce(failed.outcome, failed.status) AS outcome,
    coalesce(failed.error, failed.status_message) AS message,
    make_timestamp_ns(failed.start_ns) AS started
FROM spans AS failed
LEFT JOIN attempts USING (rollout_id, attempt_id)
LEFT JOIN span_places AS places
    ON places.rollout_id = failed.rollout_id
    AND places.attempt_id = failed.attempt_id
    AND places.trace_id = failed.trace_id
    AND places.span_id = failed.span_id
WHERE (failed.status = 'error' AND (failed.op <> 'rollout.ended' OR attempts.run IS NULL))
    OR (failed.op = 'rollout' AND failed.outcome <> 'ok')
    OR (failed.op = 'reward' AND failed.error IS NOT NULL)
