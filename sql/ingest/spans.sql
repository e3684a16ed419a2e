-- Typed spans, as they lie in the lake.
-- Grain: one row per span received (retries of a batch included: `epoch_spans` removes them).
-- Inputs: decoded_spans (one row per span of the spool, attributes read by `attribute_aliases`).
-- Rule: the scope that the server authenticated wins over what the agent wrote; what is not known stays NULL.
WITH decoded AS (
    SELECT *, CASE WHEN json_valid(attributes['metadata']) THEN attributes['metadata'] END AS metadata
    FROM decoded_spans
)
SELECT
    coalesce(scoped_rollout_id, resource['lightning.rollout_id'], resource['agentlightning.rollout_id'], declared_rollout_id) AS rollout_id,
    coalesce(scoped_attempt_id, resource['lightning.attempt_id'], resource['agentlightning.attempt_id'], declared_attempt_id) AS attempt_id,
    CASE
        WHEN scoped_rollout_id IS NOT NULL THEN scope
        WHEN coalesce(resource['lightning.rollout_id'], resource['agentlightning.rollout_id']) IS NOT NULL THEN 'resource'
        WHEN declared_rollout_id IS NOT NULL THEN 'span'
        ELSE 'none'
    END AS scope,
    trace_id,
    span_id,
    parent_span_id,
    name,
    kind,
    CASE
        WHEN name IN ('rollout', 'rollout.start') AND run IS NOT NULL THEN name
        WHEN name = 'reward' THEN 'reward'
        WHEN policy IS NOT NULL THEN 'llm'
        WHEN lower(operation) IN ('chat', 'text_completion', 'generate_content', 'completion', 'responses') THEN 'llm'
        WHEN lower(operation) = 'execute_tool' THEN 'tool'
        WHEN lower(operation) IN ('invoke_agent', 'create_agent') THEN 'agent'
        WHEN lower(operation) = 'embeddings' THEN 'embedding'
        WHEN lower(span_role) IN ('llm', 'tool', 'agent', 'embedding', 'retriever', 'chain', 'workflow', 'task') THEN lower(span_role)
        WHEN reward IS NOT NULL THEN 'reward'
        ELSE 'other'
    END AS op,
    start_ns,
    end_ns,
    status,
    status_message, trace_state, flags, dropped_attributes, dropped_events, dropped_links,
    coalesce(
        nullif(agent_name, ''),
        json_extract_string(metadata, '$.lc_agent_name'),
        json_extract_string(metadata, '$.langgraph_node'),
        nullif(regexp_extract(name, '^([\w-]+)\.run$', 1), ''),
        CASE WHEN lower(span_role) = 'agent' AND agent_name_source IS NULL THEN attributes['operation.name'] END
    ) AS agent_name,
    CASE
        WHEN agent_name <> '' THEN agent_name_source
        WHEN json_extract_string(metadata, '$.lc_agent_name') IS NOT NULL THEN 'metadata.lc_agent_name'
        WHEN json_extract_string(metadata, '$.langgraph_node') IS NOT NULL THEN 'metadata.langgraph_node'
        WHEN regexp_matches(name, '^[\w-]+\.run$') THEN 'span name'
        WHEN lower(span_role) = 'agent' AND attributes['operation.name'] IS NOT NULL THEN 'operation.name'
    END AS agent_name_source,
    run, epoch, mode, group_id, task_id, task, output, outcome, error,
    policy, policy_version, model, response_id, finish_reasons, input_tokens, output_tokens,
    input_messages, output_messages, sampling, requested_sampling, untrainable, first_token_ms,
    prompt_ids, response_ids, choice_lengths, response_logprobs,
    tool_name, tool_call_id, tool_arguments, tool_result,
    reward, coalesce(reward_name, CASE WHEN reward IS NOT NULL THEN 'reward' END) AS reward_name, reward_source,
    declared_rollout_id, declared_attempt_id, operation, span_role,
    attributes,
    resource,
    instrumentation,
    events,
    links,
    received_ns,
    record_offset,
    record_index,
    content_hash
FROM decoded
ORDER BY rollout_id, attempt_id, start_ns, trace_id, span_id, record_offset, record_index
