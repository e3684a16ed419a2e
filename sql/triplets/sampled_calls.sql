-- What was sampled: token ids and logprobs of the calls that policies of the settings answered.
-- Grain: one row per call of call_rows. Inputs: call_rows, spans.
SELECT
    call_rows.call_id,
    spans.prompt_ids,
    spans.response_ids,
    spans.response_logprobs,
    spans.choice_lengths,
    spans.sampling,
    spans.untrainable
FROM call_rows
JOIN spans USING (record_offset, record_index)
