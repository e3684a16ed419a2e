-- What was sampled: token ids and logprobs of the calls that policies of the settings answered.
-- Grain: one row per call of call_rows. `flaw` says why its tokens cannot be trained on: `no_token_ids` (also: as many
-- logprobs or choices as there are not), `empty_response`, `bad_token_ids` (negative, or past the vocabulary where that is
-- known), `bad_logprobs` (above 0 by more than rounding, infinite, NaN).
-- Inputs: call_rows, spans, policies.
SELECT
    call_rows.call_id,
    spans.prompt_ids,
    spans.response_ids,
    spans.response_logprobs,
    spans.choice_lengths,
    spans.sampling,
    spans.untrainable,
    CASE
        WHEN spans.prompt_ids IS NULL OR spans.response_ids IS NULL OR spans.response_logprobs IS NULL THEN 'no_token_ids'
        WHEN len(spans.response_ids) = 0 THEN 'empty_response'
        WHEN len(spans.prompt_ids) = 0
            OR len(spans.response_ids) <> len(spans.response_logprobs)
            OR coalesce(list_sum(spans.choice_lengths) <> len(spans.response_ids) OR list_min(spans.choice_lengths) < 0, false) THEN 'no_token_ids'
        WHEN NOT coalesce(
            least(list_min(spans.prompt_ids), list_min(spans.response_ids)) >= 0
                AND greatest(list_max(spans.prompt_ids), list_max(spans.response_ids)) < coalesce(policies.vocabulary, 2147483648),
            false
        ) THEN 'bad_token_ids'
        WHEN NOT coalesce(
            isfinite(list_min(spans.response_logprobs))
                AND isfinite(list_max(spans.response_logprobs))
                AND list_max(spans.response_logprobs) <= 1e-3,
            false
        ) THEN 'bad_logprobs'
    END AS flaw
FROM call_rows
JOIN spans USING (record_offset, record_index)
JOIN policies ON policies.policy = call_rows.policy
