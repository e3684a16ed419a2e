-- What was said in the calls of attempts in which some call carries no response id.
-- Grain: one row per LLM span of such an attempt that has any text. Inputs: nodes, spans.
-- Rule: the texts and tool call ids of the messages, in order, whichever convention wrote them: OpenAI's messages, GenAI's
-- parts, OpenInference's numbered attributes. Equal `said` is equal content.
WITH asked AS (
    SELECT DISTINCT attempt FROM nodes WHERE op = 'llm' AND response_id IS NULL
),
texts AS (
    SELECT
        nodes.node,
        nodes.attempt,
        CASE WHEN json_valid(spans.input_messages) THEN spans.input_messages END AS input,
        CASE WHEN json_valid(spans.output_messages) THEN spans.output_messages END AS output,
        list_sort(list_filter(
            map_entries(spans.attributes),
            lambda entry: regexp_matches(entry.key, '^llm\.(input|output)_messages\.\d+\.message\.(content|tool_calls\.\d+\.tool_call\.id)$')
        )) AS numbered
    FROM nodes
    SEMI JOIN asked USING (attempt)
    JOIN spans USING (record_offset, record_index)
    WHERE nodes.op = 'llm'
),
pieces AS (
    SELECT
        node,
        attempt,
        list_concat(json_extract_string(input, '$..content'), json_extract_string(input, '$..text')) AS heard,
        list_concat(
            json_extract_string(output, '$..content'), json_extract_string(output, '$..text'), json_extract_string(output, '$..id')
        ) AS answered,
        [entry.value FOR entry IN numbered IF starts_with(entry.key, 'llm.input')] AS numbered_heard,
        [entry.value FOR entry IN numbered IF starts_with(entry.key, 'llm.output')] AS numbered_answered
    FROM texts
),
plain AS (
    SELECT
        node,
        attempt,
        -- Parts and lists show up beside what is in them: only plain text counts.
        [piece FOR piece IN coalesce(nullif(heard, []), numbered_heard) IF piece <> '' AND NOT starts_with(piece, '[')] AS heard,
        [piece FOR piece IN coalesce(nullif(answered, []), numbered_answered) IF piece <> '' AND NOT starts_with(piece, '[')] AS answered
    FROM pieces
)
SELECT node, attempt, to_json([heard, answered]) AS said
FROM plain
WHERE len(answered) > 0
