-- What the calls of one attempt said and got, with the tokens that were sampled.
-- Grain: one row per LLM call. Parameters: rollout_id, attempt_id. Inputs: spans, call_twins.
-- Rule: columns come from the record that represents a call, else from its other records, the gateway's first: a call to a frozen model has no token
-- ids, so the agent's own record, without messages, may represent it. `prompt_tokens` and `response_tokens` are as counted; `given`: not the policy
-- chose the tokens of the reply.
WITH records AS (
    SELECT spans.*, coalesce(twins.twin_of, spans.span_id) AS call, twins.twin_of IS NULL AS own
    FROM spans
    LEFT JOIN call_twins AS twins
        ON twins.rollout_id = spans.rollout_id
        AND twins.attempt_id = spans.attempt_id
        AND twins.trace_id = spans.trace_id
        AND twins.span_id = spans.span_id
        AND twins.start_ns IS NOT DISTINCT FROM spans.start_ns
    WHERE spans.rollout_id = $rollout_id AND spans.attempt_id = $attempt_id AND spans.op = 'llm'
),
numbered AS (
    SELECT
        *,
        row_number() OVER (
            PARTITION BY call ORDER BY own DESC, coalesce(sender = 'gateway', false) DESC, start_ns, record_offset, record_index
        ) AS nth
    FROM records
)
SELECT
    call AS span_id,
    arg_min(coalesce(attributes['gen_ai.request.model'], model), nth) AS model,
    arg_min(nullif(input_messages, '[]'), nth) AS input_messages,
    arg_min(nullif(output_messages, '[]'), nth) AS output_messages,
    arg_min(response_ids, nth) AS response_ids,
    arg_min(response_logprobs, nth) AS response_logprobs,
    arg_min(choice_lengths, nth) AS choice_lengths,
    arg_min(coalesce(input_tokens, len(prompt_ids)), nth) AS prompt_tokens,
    arg_min(coalesce(output_tokens, len(response_ids)), nth) AS response_tokens,
    bool_or(is_given(untrainable)) AS given,
    arg_min((end_ns - start_ns) / 1e6, nth) AS milliseconds
FROM numbered
GROUP BY call
ORDER BY min(start_ns), call
