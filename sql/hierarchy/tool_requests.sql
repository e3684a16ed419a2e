-- What calls asked for under the tool call ids of tools, in attempts in which a call or such a tool lost its parent.
-- Grain: one row per (attempt, tool call id), by its `tool_call_key`, and call that asked under it (twins are one). `calls`: how many calls did.
-- `tool_name` and `arguments` are what the call asked for, NULL if that is not recorded.
-- Inputs: nodes, spans, orphans, llm_twins.
-- A table of its own, so that DuckDB knows how few there are before `tool_callers` reads the arguments of tools.
WITH lost AS (
    SELECT DISTINCT attempt
    FROM orphans
    ANTI JOIN llm_twins USING (node)
    WHERE op = 'llm' OR (op = 'tool' AND has_tool_call)
),
tools AS MATERIALIZED (
    SELECT nodes.attempt, nodes.tool_call_key
    FROM nodes
    SEMI JOIN lost USING (attempt)
    WHERE nodes.op = 'tool' AND nodes.tool_call_key IS NOT NULL
),
outputs AS (
    SELECT
        nodes.attempt,
        coalesce(llm_twins.kept, nodes.node) AS call,
        CASE WHEN json_valid(spans.output_messages) THEN spans.output_messages END AS messages,
        concat_ws(
            chr(10),
            spans.output_messages,
            spans.attributes['output.value'],
            -- OpenInference's numbered attributes hold the bare id.
            list_aggregate(
                ['"id":"' || entry.value || '"' FOR entry IN map_entries(spans.attributes) IF ends_with(entry.key, 'tool_call.id')],
                'string_agg', chr(10)
            )
        ) AS text
    FROM nodes
    SEMI JOIN tools USING (attempt)
    JOIN spans USING (record_offset, record_index)
    LEFT JOIN llm_twins USING (node)
    WHERE nodes.op = 'llm'
),
ids AS (
    SELECT DISTINCT call, hash(attempt, tool_call_id) AS tool_call_key
    FROM (
        SELECT
            attempt,
            call,
            unnest(regexp_extract_all(text, '\\*"(?:id|call_id|tool_call_id)\\*"\s*:\s*\\*"([^"\\]+)', 1)) AS tool_call_id
        FROM outputs
    )
),
requests AS (
    -- What was asked for under the id, as OpenAI and the GenAI conventions write it.
    SELECT
        call,
        hash(attempt, coalesce(request ->> '$.call_id', request ->> '$.id')) AS tool_call_key,
        min(coalesce(request ->> '$.function.name', request ->> '$.name')) AS tool_name,
        min(coalesce(request ->> '$.function.arguments', request ->> '$.arguments')) AS arguments
    FROM (
        SELECT
            attempt,
            call,
            unnest(list_concat(json_extract(messages, '$..tool_calls[*]'), json_extract(messages, '$..parts[*]'))) AS request
        FROM outputs
        WHERE messages IS NOT NULL
    )
    GROUP BY ALL
)
SELECT
    ids.tool_call_key,
    ids.call,
    requests.tool_name,
    CASE WHEN json_valid(requests.arguments) THEN json(requests.arguments) END AS arguments,
    count(*) OVER (PARTITION BY ids.tool_call_key) AS calls
FROM ids
SEMI JOIN tools USING (tool_call_key)
LEFT JOIN requests ON requests.call = ids.call AND requests.tool_call_key = ids.tool_call_key
