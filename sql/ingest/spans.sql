-- What is concluded of spans when they enter the lake; all their other columns are as the decoder read them.
-- Grain: one row per span received (retries of a batch included), in the order of the lake's files.
-- Inputs: decoded_spans (one row per span of the spool, attributes read by `attribute_aliases`; `row` numbers them).
-- Rule: the scope that the server authenticated wins over what the agent wrote; what a generic attribute (`input.value`,
-- `output.value`, entity names) means is decided by the kind of the span; what is not known stays NULL.
WITH decoded AS (
    SELECT
        *,
        CASE
            WHEN name IN ('rollout', 'rollout.start') AND run IS NOT NULL THEN name
            WHEN name = 'reward' THEN 'reward'
            WHEN policy IS NOT NULL THEN 'llm'
            WHEN lower(operation) IN ('chat', 'text_completion', 'generate_content', 'completion', 'responses') THEN 'llm'
            WHEN lower(operation) = 'execute_tool' THEN 'tool'
            WHEN lower(operation) IN ('invoke_agent', 'create_agent') THEN 'agent'
            WHEN lower(operation) = 'embeddings' THEN 'embedding'
            WHEN lower(operation) = 'invoke_workflow' THEN 'workflow'
            WHEN lower(span_role) IN (
                'llm', 'tool', 'agent', 'embedding', 'retriever', 'reranker', 'guardrail', 'evaluator', 'chain', 'workflow', 'task'
            ) THEN lower(span_role)
            WHEN reward IS NOT NULL THEN 'reward'
            ELSE 'other'
        END AS op,
        CASE WHEN json_valid(attributes['metadata']) THEN attributes['metadata'] END AS metadata
    FROM decoded_spans
)
SELECT
    row,
    coalesce(scoped_rollout_id, resource['lightning.rollout_id'], resource['agentlightning.rollout_id'], declared_rollout_id) AS rollout_id,
    coalesce(scoped_attempt_id, resource['lightning.attempt_id'], resource['agentlightning.attempt_id'], declared_attempt_id) AS attempt_id,
    CASE
        WHEN scoped_rollout_id IS NOT NULL THEN scope
        WHEN coalesce(resource['lightning.rollout_id'], resource['agentlightning.rollout_id']) IS NOT NULL THEN 'resource'
        WHEN declared_rollout_id IS NOT NULL THEN 'span'
        ELSE 'none'
    END AS scope,
    op,
    coalesce(
        nullif(agent_name, ''),
        json_extract_string(metadata, '$.lc_agent_name'),
        json_extract_string(metadata, '$.langgraph_node'),
        nullif(regexp_extract(name, '^([\w-]+)\.run$', 1), ''),
        CASE
            WHEN lower(span_role) = 'agent' AND agent_name_source IS NULL
                THEN coalesce(attributes['operation.name'], attributes['traceloop.entity.name'])
        END
    ) AS agent_name,
    CASE
        WHEN agent_name <> '' THEN agent_name_source
        WHEN json_extract_string(metadata, '$.lc_agent_name') IS NOT NULL THEN 'metadata.lc_agent_name'
        WHEN json_extract_string(metadata, '$.langgraph_node') IS NOT NULL THEN 'metadata.langgraph_node'
        WHEN regexp_matches(name, '^[\w-]+\.run$') THEN 'span name'
        WHEN lower(span_role) = 'agent' AND agent_name_source IS NULL THEN
            CASE
                WHEN attributes['operation.name'] IS NOT NULL THEN 'operation.name'
                WHEN attributes['traceloop.entity.name'] IS NOT NULL THEN 'traceloop.entity.name'
            END
    END AS agent_name_source,
    CASE
        WHEN response_id IS NOT NULL THEN response_id
        -- the reply as OpenInference's instrumentations of OpenAI and of LangChain write it
        WHEN op = 'llm' AND json_valid(attributes['output.value']) THEN coalesce(
            json_extract_string(attributes['output.value'], '$.id'),
            json_extract_string(attributes['output.value'], '$.llm_output.id'),
            json_extract_string(attributes['output.value'], '$.generations[0][0].message.kwargs.response_metadata.id')
        )
    END AS response_id,
    CASE WHEN op = 'tool' THEN coalesce(tool_name, attributes['traceloop.entity.name']) ELSE tool_name END AS tool_name,
    CASE
        WHEN op = 'tool' AND tool_arguments IS NULL
            THEN coalesce(attributes['input.value'], attributes['traceloop.entity.input'], attributes['agentops.entity.input'])
        ELSE tool_arguments
    END AS tool_arguments,
    CASE
        WHEN op = 'tool' AND tool_result IS NULL
            THEN coalesce(attributes['output.value'], attributes['traceloop.entity.output'], attributes['agentops.entity.output'])
        ELSE tool_result
    END AS tool_result,
    coalesce(reward_name, CASE WHEN reward IS NOT NULL THEN 'reward' END) AS reward_name
FROM decoded
ORDER BY rollout_id, attempt_id, start_ns, trace_id, span_id, record_offset, record_index
