-- What is concluded about spans when they enter the lake; all their other columns are as the decoder read them.
-- Grain: one row per span received, in the order of the lake's files.
-- Inputs: decoded_spans (one row per span of the spool, attributes read by `attribute_aliases`; `row` numbers them), agent_rules.
-- Rule: the scope that the server authenticated, or a proof, wins over what the agent wrote. A span without token, proof or secret belongs to no
-- rollout, whatever it names. An attempt cannot be a grader, and only the gateway opens and ends rollouts.
-- The kind of the span decides what a generic attribute (`input.value`, `output.value`, entity names) means; what is not known stays NULL. An
-- attribute `reward` (Agent Lightning 0.2) is a reward if nothing else says of which kind the span is; on a tool or a call it may mean anything.
-- AgentOps' operations return their rewards.
WITH said AS (
    SELECT
        *,
        CASE
            WHEN name IN ('rollout', 'rollout.start') AND run IS NOT NULL THEN name
            WHEN name IN ('rollout.opened', 'rollout.ended') AND sender = 'gateway' THEN name
            WHEN name = 'reward' THEN 'reward'
            WHEN policy IS NOT NULL THEN 'llm'
            WHEN lower(operation) IN ('chat', 'text_completion', 'generate_content', 'completion', 'responses') THEN 'llm'
            WHEN lower(operation) = 'execute_tool' THEN 'tool'
            WHEN lower(operation) IN ('invoke_agent', 'create_agent') THEN 'agent'
            WHEN lower(operation) = 'embeddings' THEN 'embedding'
            WHEN lower(operation) = 'invoke_workflow' THEN 'workflow'
            -- MLflow writes JSON
            WHEN lower(trim(span_role, '"')) = 'chat_model' THEN 'llm'
            WHEN lower(trim(span_role, '"')) IN (
                'llm', 'tool', 'agent', 'embedding', 'retriever', 'reranker', 'guardrail', 'evaluator', 'chain', 'workflow', 'task'
            ) THEN lower(trim(span_role, '"'))
            ELSE 'other'
        END AS meant,
        CASE
            WHEN reward IS NULL AND meant IN ('other', 'task')
                THEN coalesce(attributes['agentops.task.output'], attributes['agentops.entity.output'])
        END AS returned,
        CASE WHEN json_valid(returned) THEN json_extract_string(returned, '$.type') = 'reward' ELSE false END AS returns_reward,
        CASE
            WHEN returns_reward THEN json_extract_string(returned, '$.value')
            WHEN meant IN ('other', 'reward') AND reward IS NULL THEN attributes['reward']
        END AS reward_text,
        coalesce(reward, TRY_CAST(reward_text AS DOUBLE), TRY_CAST(TRY_CAST(reward_text AS BOOLEAN) AS DOUBLE)) AS known_reward
    FROM decoded_spans
),
decoded AS (
    SELECT
        * REPLACE (known_reward AS reward),
        CASE WHEN returns_reward OR (meant = 'other' AND known_reward IS NOT NULL) THEN 'reward' ELSE meant END AS op,
        coalesce(resource['lightning.rollout_id'], resource['agentlightning.rollout_id']) AS resource_rollout_id,
        coalesce(resource['lightning.attempt_id'], resource['agentlightning.attempt_id']) AS resource_attempt_id,
        sender IS DISTINCT FROM 'nobody' AS believed,
        reward_source = 'grader' AND sender IN ('attempt', 'nobody') AS no_grader
    FROM said
),
rule_keys AS (
    SELECT
        list(DISTINCT key) AS every,
        CASE WHEN arg_min(path IS NULL AND ops IS NULL AND pattern = '^(.+)$', rank) THEN arg_min(key, rank) END AS first
    FROM agent_rules
),
concluded AS MATERIALIZED (
    SELECT
        row,
        coalesce(scoped_rollout_id, CASE WHEN believed THEN coalesce(resource_rollout_id, declared_rollout_id) END) AS rollout_id,
        coalesce(scoped_attempt_id, CASE WHEN believed THEN coalesce(resource_attempt_id, declared_attempt_id) END) AS attempt_id,
        CASE
            WHEN scoped_rollout_id IS NOT NULL THEN scope
            WHEN believed AND resource_rollout_id IS NOT NULL THEN 'resource'
            WHEN believed AND declared_rollout_id IS NOT NULL THEN 'span'
            ELSE 'none'
        END AS scope,
        CASE
            WHEN refused IS NOT NULL THEN refused
            WHEN no_grader THEN 'lightning.reward.source'
            WHEN NOT believed AND scoped_rollout_id IS NULL AND coalesce(resource_rollout_id, declared_rollout_id) IS NOT NULL
                THEN 'lightning.rollout_id'
        END AS refused,
        CASE WHEN no_grader THEN 'refused' ELSE reward_source END AS reward_source,
        op,
        CASE
            WHEN response_id IS NOT NULL THEN response_id
            -- the reply as OpenInference's instrumentations of OpenAI and of LangChain write it
            WHEN op = 'llm' AND json_valid(attributes['output.value']) THEN coalesce(
                json_extract_string(attributes['output.value'], '$.id'),
                json_extract_string(attributes['output.value'], '$.llm_output.id'),
                json_extract_string(attributes['output.value'], '$.generations[0][0].message.kwargs.response_metadata.id')
            )
        END AS response_id,
        CASE WHEN op = 'tool' THEN coalesce(tool_name, attributes['traceloop.entity.name'], trim(attributes['mlflow.spanFunctionName'], '"')) ELSE tool_name END AS tool_name,
        CASE
            WHEN op = 'tool' AND tool_arguments IS NULL
                THEN coalesce(attributes['input.value'], attributes['traceloop.entity.input'], attributes['agentops.entity.input'], attributes['mlflow.spanInputs'])
            ELSE tool_arguments
        END AS tool_arguments,
        CASE
            WHEN op = 'tool' AND tool_result IS NULL
                THEN coalesce(attributes['output.value'], attributes['traceloop.entity.output'], attributes['agentops.entity.output'], attributes['mlflow.spanOutputs'])
            ELSE tool_result
        END AS tool_result,
        reward,
        coalesce(reward_name, CASE WHEN reward IS NOT NULL THEN 'reward' END) AS reward_name,
        name,
        agent_name,
        agent_name_source,
        -- A name that the first rule finds is the agent's; there is no need to look for others.
        agent_name_source IS DISTINCT FROM rule_keys.first OR agent_name = '' AS unnamed,
        CASE
            WHEN unnamed AND list_has_any(map_keys(attributes), rule_keys.every) THEN map_entries(attributes)
        END AS attributes_with_names,
        start_ns,
        trace_id,
        span_id,
        record_offset,
        record_index
    FROM decoded
    CROSS JOIN rule_keys
),
written AS (
    -- Text in which a rule looks for an agent's name; the decoder has put one attribute of those that hold one aside.
    SELECT row, op, agent_name_source AS key, agent_name AS text FROM concluded WHERE unnamed AND agent_name IS NOT NULL
    UNION ALL
    SELECT row, op, entry.key, entry.value
    FROM (SELECT row, op, unnest(attributes_with_names) AS entry FROM concluded WHERE attributes_with_names IS NOT NULL)
    UNION ALL
    SELECT row, op, '', name FROM concluded WHERE unnamed AND ends_with(name, '.run')
),
found AS (
    SELECT
        row,
        rank,
        says,
        CASE
            WHEN path IS NOT NULL THEN regexp_extract(CASE WHEN json_valid(text) THEN json_extract_string(text, path) END, pattern, 1)
            WHEN pattern = '^(.+)$' THEN text -- as most are: DuckDB compiles a pattern that is no constant for each row
            ELSE regexp_extract(text, pattern, 1)
        END AS agent_name
    FROM written
    JOIN agent_rules AS rules ON rules.key = written.key AND (rules.ops IS NULL OR list_contains(rules.ops, written.op))
),
named AS (
    SELECT row, min_by(agent_name, rank) AS agent_name, min_by(says, rank) AS says FROM found WHERE agent_name <> '' GROUP BY row
)
SELECT
    row,
    rollout_id,
    attempt_id,
    scope,
    refused,
    reward_source,
    op,
    CASE WHEN unnamed THEN named.agent_name ELSE concluded.agent_name END AS agent_name,
    CASE WHEN unnamed THEN named.says ELSE concluded.agent_name_source END AS agent_name_source,
    response_id,
    tool_name,
    tool_arguments,
    tool_result,
    reward,
    reward_name
FROM concluded
LEFT JOIN named USING (row)
ORDER BY rollout_id, attempt_id, start_ns, trace_id, span_id, record_offset, record_index
