-- What is known, without reading tokens, of the calls that policies of the settings sampled.
-- Grain: one row per call of call_rows. `unmeasured`: its tokens have to be read, because its file was written before spans had columns for the
-- extremes of ids and logprobs. `highest_logprob` is NaN if any logprob is. Tokenized calls have logprobs of 0, and may have a flaw already.
-- Inputs: call_rows, spans, policies, tokenized_calls.
SELECT
    call_rows.call_id,
    call_rows.record_offset,
    call_rows.record_index,
    policies.vocabulary,
    spans.choice_lengths,
    spans.sampling,
    CASE WHEN NOT call_rows.tokenized THEN spans.untrainable END AS untrainable,
    CASE WHEN policies.truncated = 'drop' THEN spans.finish_reasons END AS finish_reasons,
    tokenized.flaw,
    call_rows.prompt_tokens,
    call_rows.response_tokens,
    CASE WHEN call_rows.tokenized THEN call_rows.response_tokens ELSE spans.logprob_count END AS logprobs,
    CASE WHEN call_rows.tokenized THEN 0 ELSE spans.lowest_token_id END AS lowest_token_id,
    CASE
        WHEN call_rows.tokenized THEN greatest(list_max(tokenized.prompt_ids), list_max(tokenized.response_ids))
        ELSE spans.highest_token_id
    END AS highest_token_id,
    spans.lowest_logprob,
    CASE WHEN call_rows.tokenized THEN 0 ELSE spans.highest_logprob END AS highest_logprob,
    NOT call_rows.tokenized
        AND coalesce(spans.prompt_id_count, spans.response_id_count) IS NOT NULL
        AND spans.logprob_count IS NULL
        AND spans.lowest_token_id IS NULL AS unmeasured
FROM call_rows
JOIN spans USING (record_offset, record_index)
LEFT JOIN tokenized_calls AS tokenized USING (record_offset, record_index)
JOIN policies ON policies.policy = call_rows.policy
