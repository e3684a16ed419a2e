-- What was sampled: token ids and logprobs of the calls that policies of the settings answered.
-- Grain: one row per call of call_rows. `flaw` says why its tokens cannot be trained on: `no_token_ids` (also: as many
-- logprobs or choices as there are not), `empty_response`, `bad_token_ids` (negative, or past the vocabulary where that is
-- known), `bad_logprobs` (above 0 by more than rounding, infinite, NaN).
-- Inputs: call_rows, spans, policies.
WITH measured AS (
    SELECT
        call_rows.call_id,
        spans.prompt_ids,
        spans.response_ids,
        spans.response_logprobs,
        spans.choice_lengths,
        spans.sampling,
        spans.untrainable,
        policies.vocabulary,
        list_min(spans.prompt_ids) AS lowest_in_prompt,
        -- Asked only where it is compared with something: a list's extreme is a tenth of what this table costs.
        CASE WHEN policies.vocabulary IS NOT NULL THEN list_max(spans.prompt_ids) END AS highest_in_prompt,
        list_min(spans.response_ids) AS lowest_in_response,
        CASE WHEN policies.vocabulary IS NOT NULL THEN list_max(spans.response_ids) END AS highest_in_response,
        list_max(spans.response_logprobs) AS highest_logprob,  -- NaN is the highest of all
        list_contains(spans.response_logprobs, '-inf'::FLOAT) AS impossible
    FROM call_rows
    JOIN spans USING (record_offset, record_index)
    JOIN policies ON policies.policy = call_rows.policy
)
SELECT
    call_id,
    prompt_ids,
    response_ids,
    response_logprobs,
    choice_lengths,
    sampling,
    untrainable,
    CASE
        WHEN prompt_ids IS NULL OR response_ids IS NULL OR response_logprobs IS NULL THEN 'no_token_ids'
        WHEN len(response_ids) = 0 THEN 'empty_response'
        WHEN len(prompt_ids) = 0
            OR len(response_ids) <> len(response_logprobs)
            OR coalesce(len(choice_lengths) = 0 OR list_sum(choice_lengths) <> len(response_ids) OR list_min(choice_lengths) < 0, false) THEN 'no_token_ids'
        WHEN NOT coalesce(lowest_in_prompt >= 0 AND lowest_in_response >= 0, false)
            OR greatest(highest_in_prompt, highest_in_response) >= vocabulary THEN 'bad_token_ids'
        WHEN impossible OR NOT coalesce(highest_logprob <= 1e-3, false) THEN 'bad_logprobs'
    END AS flaw
FROM measured
