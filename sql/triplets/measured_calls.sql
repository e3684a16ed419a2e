-- What is known of the calls that policies of the settings sampled without reading their tokens.
-- Grain: one row per call of call_rows. `unmeasured`: its tokens have to be read, since its file was written before spans had
-- their extremes. `highest_logprob` is NaN where any is.
-- Inputs: call_rows, spans, policies.
SELECT
    call_rows.call_id,
    call_rows.record_offset,
    call_rows.record_index,
    policies.vocabulary,
    spans.choice_lengths,
    spans.sampling,
    spans.untrainable,
    CASE WHEN policies.truncated = 'drop' THEN spans.finish_reasons END AS finish_reasons,
    spans.prompt_id_count AS prompt_tokens,
    spans.response_id_count AS response_tokens,
    spans.logprob_count AS logprobs,
    spans.lowest_token_id,
    spans.highest_token_id,
    spans.lowest_logprob,
    spans.highest_logprob,
    coalesce(spans.prompt_id_count, spans.response_id_count) IS NOT NULL
        AND spans.logprob_count IS NULL
        AND spans.lowest_token_id IS NULL AS unmeasured
FROM call_rows
JOIN spans USING (record_offset, record_index)
JOIN policies ON policies.policy = call_rows.policy
