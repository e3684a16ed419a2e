-- The spans that the epoch consists of, with the few columns that placing every one of them needs.
-- Grain: one row per span of an attempt that counts. The wide columns are one join away: `spans` USING (record_offset, record_index), or
-- the view `epoch_spans`.
-- Inputs: spans, node_keys.
-- Rule: `prompt_tokens` and `response_tokens` are the lengths of the lists of token ids, NULL if there are none. `attempt` is that of `bucket`,
-- which has its rollout and attempt id. `span_key`, `parent_key`, `response_key` and `tool_call_key` stand for (attempt, id) in 64 bits, because
-- joins of a million spans need one number. Texts that only few spans need (trace, links, the parent's id) are read for these. Times are
-- at most 2^62 ns from 1970 (the year 2116), so that sums cannot overflow; `spans` has them as sent.
SELECT
    keys.node,
    keys.attempt,
    keys.record_offset,
    keys.record_index,
    spans.span_id,
    hash(keys.attempt, spans.span_id) AS span_key,
    CASE WHEN spans.parent_span_id IS NOT NULL THEN hash(keys.attempt, spans.parent_span_id) END AS parent_key,
    spans.op,
    spans.agent_name,
    CASE WHEN spans.start_ns BETWEEN -4_611_686_018_427_387_904 AND 4_611_686_018_427_387_904 THEN spans.start_ns ELSE 4_611_686_018_427_387_904 * sign(spans.start_ns)::BIGINT END AS start_ns,
    CASE WHEN spans.end_ns BETWEEN -4_611_686_018_427_387_904 AND 4_611_686_018_427_387_904 THEN spans.end_ns ELSE 4_611_686_018_427_387_904 * sign(spans.end_ns)::BIGINT END AS end_ns,
    spans.status,
    spans.policy,
    spans.policy_version,
    CASE WHEN spans.response_id IS NOT NULL THEN hash(keys.attempt, spans.response_id) END AS response_key,
    spans.tool_name,
    CASE WHEN spans.tool_call_id IS NOT NULL THEN hash(keys.attempt, spans.tool_call_id) END AS tool_call_key,
    spans.reward,
    spans.reward_name,
    spans.reward_source,
    spans.prompt_id_count AS prompt_tokens,
    spans.response_id_count AS response_tokens
FROM spans
JOIN node_keys AS keys USING (record_offset, record_index)
