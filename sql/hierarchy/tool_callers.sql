-- Which call asked for which tool run, where either has lost its parent: then one tells where the other belongs.
-- Grain: one row per tool span whose tool call id is in the output of exactly one LLM call of its attempt (twins are
-- one), in attempts with a call or a tool whose declared parent is not there. Inputs: nodes, spans, declared, llm_twins.
WITH lost AS (
    SELECT DISTINCT attempt
    FROM nodes
    ANTI JOIN declared USING (node)
    ANTI JOIN llm_twins USING (node)
    WHERE op = 'llm' OR (op = 'tool' AND tool_call_id IS NOT NULL)
),
tools AS MATERIALIZED (
    SELECT node, attempt, tool_call_id FROM nodes SEMI JOIN lost USING (attempt) WHERE op = 'tool' AND tool_call_id IS NOT NULL
),
outputs AS (
    SELECT
        nodes.attempt,
        coalesce(llm_twins.kept, nodes.node) AS call,
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
asked AS (
    SELECT DISTINCT attempt, call, unnest(regexp_extract_all(text, '\\*"(?:id|call_id|tool_call_id)\\*"\s*:\s*\\*"([^"\\]+)', 1)) AS tool_call_id
    FROM outputs
)
SELECT tools.node, min(asked.call) AS call
FROM tools
JOIN asked USING (attempt, tool_call_id)
GROUP BY tools.node
HAVING count(*) = 1
