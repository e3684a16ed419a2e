-- Whether the token ids and logprobs of each sampled call can be trained on; they themselves stay in `spans`.
-- Grain: one row per call of call_rows. `flaw` says why not: `no_token_ids` (also if their number does not fit logprobs or choices),
-- `empty_response`, `bad_token_ids` (negative, or past the vocabulary if that is known), `bad_logprobs` (above 0 by more than rounding,
-- infinite, NaN); or why its text could not be tokenized. `finish_reasons`: a JSON list, one a choice, if the policy leaves out truncated
-- replies.
-- Inputs: measured_calls, spans.
WITH read AS (
    -- None, as a rule; then DuckDB reads no tokens.
    SELECT
        measured_calls.* REPLACE (
            len(spans.response_logprobs) AS logprobs,
            least(list_min(spans.prompt_ids), list_min(spans.response_ids)) AS lowest_token_id,
            greatest(list_max(spans.prompt_ids), list_max(spans.response_ids)) AS highest_token_id,
            list_min(spans.response_logprobs) AS lowest_logprob,
            list_max(spans.response_logprobs) AS highest_logprob
        )
    FROM measured_calls
    JOIN spans USING (record_offset, record_index)
    WHERE measured_calls.unmeasured
),
measured AS (
    FROM measured_calls WHERE NOT unmeasured
    UNION ALL
    FROM read
)
SELECT
    call_id,
    choice_lengths,
    sampling,
    untrainable,
    finish_reasons,
    CASE
        WHEN flaw IS NOT NULL THEN flaw
        WHEN prompt_tokens IS NULL OR response_tokens IS NULL OR logprobs IS NULL THEN 'no_token_ids'
        WHEN response_tokens = 0 THEN 'empty_response'
        WHEN prompt_tokens = 0
            OR response_tokens <> logprobs
            OR coalesce(len(choice_lengths) = 0 OR list_sum(choice_lengths) <> response_tokens OR list_min(choice_lengths) < 0, false) THEN 'no_token_ids'
        WHEN NOT coalesce(lowest_token_id >= 0, false) OR highest_token_id >= vocabulary THEN 'bad_token_ids'
        -- NaN is the highest of all.
        WHEN lowest_logprob = '-inf'::FLOAT OR NOT coalesce(highest_logprob <= 1e-3, false) THEN 'bad_logprobs'
    END AS flaw
FROM measured
