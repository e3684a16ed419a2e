-- Every LLM call, with its messages, token ids and the agent that made it.
-- Grain: one row per record of a call. A call through the gateway that the agent's instrumentation also recorded has two rows: count and sum
-- with `WHERE twin_of IS NULL`.
-- Inputs: spans, attempts, span_places, call_twins.
-- Rule: `recorded_by` is the gateway (with token ids for a policy's calls; calls to frozen models and upstreams have no policy) or the agent's
-- own instrumentation (calls past the gateway, and production agents). `twin_of` is the span_id of the record that represents the call.
-- `model` is what the agent asked for, `served_model` the name under which the model server answered: a policy that is still its base, and a
-- frozen model, may share one. `input_messages` are as the agent sent them; `prompts_served` is what the model got in place of some of them.
SELECT
    attempts.run,
    attempts.epoch,
    attempts.mode,
    calls.rollout_id,
    calls.attempt_id,
    calls.trace_id,
    calls.span_id,
    CASE
        WHEN calls.sender = 'gateway' THEN 'gateway'
        -- Spans of before senders were written down; the gateway's package had two names.
        WHEN calls.sender IS NULL AND (calls.policy IS NOT NULL OR starts_with(coalesce(calls.instrumentation, ''), 'lightning_core.'))
            THEN 'gateway'
        ELSE 'instrumentation'
    END AS recorded_by,
    twins.twin_of,
    coalesce(places.agent, calls.agent_name) AS agent,
    coalesce(places.agent_path, calls.agent_name) AS agent_path,
    calls.policy,
    calls.policy_version,
    coalesce(calls.attributes['gen_ai.request.model'], calls.model) AS model,
    calls.model AS served_model,
    calls.response_id,
    calls.status,
    coalesce(calls.error, calls.status_message) AS error,
    calls.input_tokens AS prompt_tokens,
    calls.output_tokens AS response_tokens,
    calls.finish_reasons,
    calls.untrainable,
    (calls.end_ns - calls.start_ns) / 1e6 AS milliseconds,
    calls.first_token_ms,
    make_timestamp_ns(calls.start_ns) AS started,
    calls.sampling,
    calls.requested_sampling,
    calls.input_messages,
    CASE WHEN calls.sender = 'gateway' THEN calls.attributes['lightning.prompts_served'] END AS prompts_served,
    CASE WHEN calls.sender = 'gateway' THEN calls.attributes['lightning.prompts_found'] END AS prompts_found,
    calls.output_messages,
    calls.prompt_ids,
    calls.response_ids,
    calls.response_logprobs
FROM spans AS calls
LEFT JOIN attempts USING (rollout_id, attempt_id)
LEFT JOIN (FROM span_places WHERE op = 'llm') AS places
    ON places.rollout_id = calls.rollout_id
    AND places.attempt_id = calls.attempt_id
    AND places.trace_id = calls.trace_id
    AND places.span_id = calls.span_id
LEFT JOIN call_twins AS twins
    ON twins.rollout_id = calls.rollout_id
    AND twins.attempt_id = calls.attempt_id
    AND twins.trace_id = calls.trace_id
    AND twins.span_id = calls.span_id
    AND twins.start_ns IS NOT DISTINCT FROM calls.start_ns
WHERE calls.op = 'llm'
