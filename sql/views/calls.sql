-- Every call the gateway served, with its messages and token counts.
-- Grain: one row per call. Inputs: spans
SELECT DISTINCT ON (rollout_id, attempt_id, trace_id, span_id)
    rollout_id,
    attempt_id,
    span_id,
    policy,
    policy_version,
    response_id,
    status,
    error,
    input_tokens,
    output_tokens,
    finish_reasons,
    untrainable,
    (end_ns - start_ns) / 1e6 AS milliseconds,
    first_token_ms,
    make_timestamp_ns(start_ns) AS started,
    sampling,
    requested_sampling,
    input_messages,
    output_messages,
    prompt_ids,
    response_ids,
    response_logprobs
FROM spans
WHERE policy IS NOT NULL
ORDER BY rollout_id, attempt_id, trace_id, span_id, record_offset
