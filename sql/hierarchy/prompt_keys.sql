-- What a call's prompt tells of the agent that made it: its leading system messages and the names of its tools.
-- Grain: one row per call (twins merged) that has either, of attempts in which spans wait for a place; equal `prompt_key`,
-- equal prompts. Inputs: nodes, spans, waiting, llm_twins.
-- Rule: numbers, dates and ids in the messages count as equal. Where that leaves prompts that begin alike and hardly ever come
-- twice in the attempt, as with retrieved text, their first hundred characters and the rest of that line stand for them.
WITH read AS (
    SELECT
        nodes.node,
        nodes.attempt,
        TRY(from_json(spans.input_messages, '[{"role": "VARCHAR", "content": "VARCHAR"}]')) AS messages,
        json_extract_string(TRY(spans.attributes['gen_ai.tool.definitions']::JSON), '$..name') AS tools
    FROM nodes
    SEMI JOIN waiting USING (attempt)
    ANTI JOIN llm_twins USING (node)
    JOIN spans USING (record_offset, record_index)
    WHERE nodes.op = 'llm'
),
texts AS (
    SELECT
        node,
        attempt,
        regexp_replace(
            array_to_string(
                [m.content FOR m IN messages[1:coalesce(list_position([m.role NOT IN ('system', 'developer') FOR m IN messages], true) - 1, len(messages))]],
                chr(10)
            ),
            '\b[0-9a-fA-F:.-]*[0-9][0-9a-fA-F:.-]*\b', '#', 'g'
        ) AS text,
        list_sort(list_distinct(tools)) AS tools
    FROM read
),
keys AS (
    SELECT
        node,
        attempt,
        hash(text, tools) AS whole,
        hash(regexp_extract(text, '^(?s:.{0,100})[^\n]*'), tools) AS opening
    FROM texts
    WHERE text <> '' OR len(tools) > 0
)
SELECT
    node,
    attempt,
    whole,
    opening,
    CASE WHEN 2 * count(DISTINCT whole) OVER alike <= count(*) OVER alike OR count(DISTINCT whole) OVER alike = 1
        THEN whole ELSE opening END AS prompt_key
FROM keys
WINDOW alike AS (PARTITION BY attempt, opening)
