-- What was said in the calls of attempts in which some call has no response id.
-- Grain: one row per LLM span of such an attempt that has any text. Inputs: nodes, spans.
-- Rule: `said` is made of the ids of the tool calls that the reply asks for, if it does; else of the texts of messages and reply. They are
-- sorted, so that they are the same in every convention: OpenAI's messages, GenAI's parts, OpenInference's numbered attributes. Equal
-- `said` is equal content. `models` has the names of the model in the record, without a provider before or a date after them: the gateway's
-- record has the policy, the name that the client sent, and the server's.
WITH asked AS (
    SELECT DISTINCT attempt FROM nodes WHERE op = 'llm' AND response_key IS NULL
),
messages AS (
    SELECT
        nodes.node,
        nodes.attempt,
        CASE WHEN json_valid(spans.input_messages) THEN spans.input_messages END AS input,
        CASE WHEN json_valid(spans.output_messages) THEN spans.output_messages END AS output,
        map_entries(spans.attributes) AS attributes,
        [
            spans.model, spans.policy, spans.attributes['gen_ai.request.model'], spans.attributes['llm.model_name']
        ] AS models
    FROM nodes
    SEMI JOIN asked USING (attempt)
    JOIN spans USING (record_offset, record_index)
    WHERE nodes.op = 'llm'
),
pieces AS (
    SELECT
        node,
        attempt,
        list_concat(
            json_extract_string(output, '$..id'),
            [
                entry.value FOR entry IN attributes
                IF regexp_full_match(entry.key, 'llm\.output_messages\.\d+\.message\.tool_calls\.\d+\.tool_call\.id')
            ]
        ) AS tool_calls,
        list_concat(
            json_extract_string(input, '$..content'),
            json_extract_string(input, '$..text'),
            [
                entry.value FOR entry IN attributes
                IF regexp_full_match(entry.key, 'llm\.input_messages\.\d+\.message\.(content|contents\.\d+\.message_content\.text)')
            ]
        ) AS heard,
        list_concat(
            json_extract_string(output, '$..content'),
            json_extract_string(output, '$..text'),
            [
                entry.value FOR entry IN attributes
                IF regexp_full_match(entry.key, 'llm\.output_messages\.\d+\.message\.(content|contents\.\d+\.message_content\.text)')
            ]
        ) AS answered,
        list_distinct([
            lower(regexp_extract(name, '([^/]+?)(-\d{4}-?\d{2}-?\d{2})?$', 1)) FOR name IN models IF name <> ''
        ]) AS models
    FROM messages
),
texts AS (
    SELECT
        node,
        attempt,
        list_sort(list_distinct([piece FOR piece IN tool_calls IF piece <> ''])) AS tool_calls,
        -- A list of parts shows up beside the parts' own texts; and a convention may be written twice.
        list_sort(list_distinct([piece FOR piece IN heard IF piece <> '' AND NOT starts_with(piece, '[')])) AS heard,
        list_sort(list_distinct([piece FOR piece IN answered IF piece <> '' AND NOT starts_with(piece, '[')])) AS answered,
        models
    FROM pieces
)
SELECT node, attempt, models, CASE WHEN len(tool_calls) > 0 THEN to_json(tool_calls) ELSE to_json([heard, answered]) END AS said
FROM texts
WHERE len(tool_calls) > 0 OR len(answered) > 0
