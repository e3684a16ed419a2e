-- Attributes that a span's sender may not set, in spans of a rollout or in its name.
-- Grain: one row per such span, of any attempt. Parameters: rollout_id. Inputs: refused_claims
SELECT attempt_id, trace_id, span_id, name, sender, refused, reward
FROM refused_claims
WHERE rollout_id = $rollout_id
ORDER BY received, trace_id, span_id
