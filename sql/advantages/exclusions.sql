-- Every call of the epoch's training rollouts that is not trained on, choice by choice, and why.
-- Grain: one row per (call, choice) that is in no sequence. `call_id` is NULL for calls of attempts that do not count.
-- Inputs: call_exclusions, uncounted_calls.
SELECT call_id, choice, rollout_id, attempt_id, span_id, policy, agent, reason FROM call_exclusions
UNION ALL
SELECT NULL, choice, rollout_id, attempt_id, span_id, policy, agent, reason FROM uncounted_calls
ORDER BY ALL
