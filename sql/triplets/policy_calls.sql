-- Every LLM call of the epoch's rollouts, and whether it trains a policy.
-- Grain: one row per call (twins merged). `left_out` is NULL where the call trains `policy`.
-- Inputs: epoch_spans, span_tree, rollout_rewards, policies (policy, agent_match, agent_exclude).
-- Rule: a call trains the policy that sampled it, if that policy's agent_match takes the call's agent; the first
-- reason that holds is given for those left out.
SELECT
    spans.node AS call_id,
    spans.rollout_id,
    spans.attempt_id,
    rewards.group_id,
    spans.span_id,
    spans.response_id,
    spans.start_ns,
    spans.end_ns,
    tree.agent,
    tree.agent_path,
    tree.method,
    spans.policy,
    spans.policy_version,
    len(spans.prompt_ids) AS prompt_tokens,
    len(spans.response_ids) AS response_tokens,
    CASE
        WHEN spans.status = 'error' THEN 'failed_call'
        WHEN spans.policy IS NULL THEN 'other_policy'
        WHEN policies.policy IS NULL THEN 'other_policy'
        WHEN spans.untrainable = 'redacted' THEN 'untrainable: redacted' -- its token ids were taken away, none were missing
        WHEN spans.prompt_ids IS NULL OR spans.response_ids IS NULL OR spans.response_logprobs IS NULL THEN 'no_token_ids'
        WHEN len(spans.response_ids) = 0 THEN 'empty_response'
        WHEN len(spans.response_ids) <> len(spans.response_logprobs) THEN 'no_token_ids'
        WHEN spans.untrainable IS NOT NULL THEN 'untrainable: ' || spans.untrainable
        WHEN tree.ambiguous THEN 'ambiguous_agent'
        WHEN NOT regexp_matches(coalesce(tree.agent, ''), policies.agent_match) THEN 'agent_not_matched'
        WHEN policies.agent_exclude IS NOT NULL AND regexp_matches(coalesce(tree.agent, ''), policies.agent_exclude) THEN 'agent_excluded'
        WHEN rewards.left_out IS NOT NULL THEN rewards.left_out
    END AS left_out
FROM epoch_spans AS spans
JOIN span_tree AS tree USING (node)
JOIN rollout_rewards AS rewards ON rewards.rollout_id = spans.rollout_id AND rewards.attempt_id = spans.attempt_id
LEFT JOIN policies ON policies.policy = spans.policy
WHERE spans.op = 'llm' AND tree.twin_of IS NULL
ORDER BY call_id
