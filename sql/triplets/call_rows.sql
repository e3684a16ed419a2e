-- Where in the lake the calls lie that could be trained on: their token ids and messages are one join away.
-- Grain: one row per call of policy_calls that is not left out. Inputs: policy_calls, nodes.
SELECT calls.call_id, calls.rollout_id, calls.attempt_id, nodes.record_offset, nodes.record_index
FROM policy_calls AS calls
JOIN nodes ON nodes.node = calls.call_id
WHERE calls.left_out IS NULL
