-- Where frameworks write the name of an agent.
-- Grain: one row per convention; the lowest `rank` that gives a name wins. Inputs: none; this file is the table.
-- Rule: the text is an attribute or the span's name; if it is JSON, what is at `path` in it. The name is the first group of
-- `pattern` (RE2). `ops`: only on spans of these kinds. `says` goes into `agent_name_source`.
-- It is read when spans enter the lake (sql/ingest/spans.sql). Rows of the settings (`agent_rules`) go before it; they are read
-- when an epoch is derived (sql/hierarchy/user_names.sql), so they also apply to spans that are already in the lake.
SELECT * FROM (VALUES
    -- GenAI conventions: pydantic-ai, Agent Framework, AutoGen, OpenAI Agents
    ( 1, 'attribute', 'gen_ai.agent.name',     NULL,                         '^(.+)$',     NULL,                  'gen_ai.agent.name'),
    -- OpenInference, AgentOps
    ( 2, 'attribute', 'agent.name',            NULL,                         '^(.+)$',     NULL,                  'agent.name'),
    ( 3, 'attribute', 'agent_name',            NULL,                         '^(.+)$',     NULL,                  'agent_name'),
    -- LangChain: the agent; LangGraph: the innermost node of its checkpoint's name that is no part of a prebuilt agent
    ( 4, 'attribute', 'lc_agent_name',         NULL,                         '^(.+)$',     NULL,                  'lc_agent_name'),
    ( 5, 'attribute', 'metadata',              '$.lc_agent_name',            '^(.+)$',     NULL,                  'metadata.lc_agent_name'),
    ( 6, 'attribute', 'metadata',              '$.langgraph_checkpoint_ns',
        '(?:^|\|)([^:|]+):[^|]*(?:\|(?:agent|tools|(?:call_)?model|(?:pre|post)_model_hook|generate_structured_response|[^:|]+\.(?:before|after)_(?:model|agent)):[^|]*)+$',
                                                                                            NULL,                  'metadata.langgraph_checkpoint_ns'),
    ( 7, 'attribute', 'metadata',              '$.langgraph_checkpoint_ns',  '([^:|]+):[^|]*$', NULL,             'metadata.langgraph_checkpoint_ns'),
    ( 8, 'attribute', 'langgraph_node',        NULL,                         '^(.+)$',     NULL,                  'langgraph_node'),
    ( 9, 'attribute', 'metadata',              '$.langgraph_node',           '^(.+)$',     NULL,                  'metadata.langgraph_node'),
    -- Traceloop: the outermost entity
    (10, 'attribute', 'traceloop.entity.path', NULL,                         '^([^.]+)',   NULL,                  'traceloop.entity.path'),
    -- CrewAI, OpenAI Agents in OpenInference: also on spans that are no agents
    (11, 'attribute', 'graph.node.id',         NULL,                         '^(.+)$',     ['agent', 'chain', 'workflow', 'task', 'other'], 'graph.node.id'),
    -- smolagents. CrewAI calls its tools so, Haystack its pipelines
    (12, 'span_name', '',                      NULL,                         '^([\w-]+)\.run$', ['agent'],  'span name'),
    -- AutoGen: the agent and the id of its runtime
    (13, 'attribute', 'recipient_agent_type',  NULL,
        '^(.+?)(?:_[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})?$', NULL,                        'recipient_agent_type'),
    (14, 'attribute', 'executor.id',           NULL,                         '^(.+)$',     NULL,                  'executor.id'),
    -- AgentOps, Traceloop: what a span of kind agent is called
    (15, 'attribute', 'operation.name',        NULL,                         '^(.+)$',     ['agent'],             'operation.name'),
    (16, 'attribute', 'traceloop.entity.name', NULL,                         '^(.+)$',     ['agent'],             'traceloop.entity.name'),
    -- AgentOps in LangChain: a chain's name
    (17, 'attribute', 'langchain.chain.type',  NULL,                         '^(.+)$',     ['chain', 'workflow', 'task', 'other'], 'langchain.chain.type'),
    -- MLflow, which writes JSON: a traced function
    (18, 'attribute', 'mlflow.spanFunctionName', NULL,                       '^"?(.+?)"?$', ['agent'],            'mlflow.spanFunctionName')
) AS rules (rank, source, key, path, pattern, ops, says)
ORDER BY rank
