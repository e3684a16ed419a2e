-- What the calls of one attempt said and got, with the tokens that were sampled.
-- Grain: one row per LLM span. Parameters: rollout_id, attempt_id. Inputs: spans.
SELECT
    trace_id,
    span_id,
    model,
    finish_reasons,
    input_messages,
    output_messages,
    sampling,
    response_ids,
    response_logprobs,
    choice_lengths,
    (end_ns - start_ns) / 1e6 AS milliseconds
FROM spans
WHERE rollout_id = $rollout_id AND attempt_id = $attempt_id AND op = 'llm'
ORDER BY start_ns, record_offset, record_index
