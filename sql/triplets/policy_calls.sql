-- Every LLM call of the epoch's rollouts, its agent, and whether it trains a policy.
-- Grain: one row per call (twins merged). `left_out` is NULL if the call trains `policy`.
-- Inputs: judged_calls, nodes, places, spans, bucket, rollout_rewards.
-- Rule: that of judged_calls, with more columns for analysts. It is made after the triplets, which do not need it.
SELECT
    calls.call_id,
    bucket.rollout_id,
    bucket.attempt_id,
    rewards.group_id,
    nodes.span_id,
    spans.response_id,
    nodes.start_ns,
    nodes.end_ns,
    places.agent,
    places.agent_path,
    places.method,
    calls.policy,
    nodes.policy_version,
    nodes.prompt_tokens,
    nodes.response_tokens,
    calls.other_sampling,
    calls.left_out
FROM judged_calls AS calls
JOIN nodes ON nodes.node = calls.call_id
JOIN places ON places.node = calls.call_id
JOIN spans USING (record_offset, record_index)
JOIN bucket ON bucket.attempt = calls.attempt
JOIN rollout_rewards AS rewards ON rewards.rollout_id = bucket.rollout_id AND rewards.attempt_id = bucket.attempt_id
ORDER BY calls.call_id
