-- The prompt of each call, as far as it tells agents apart.
-- Grain: one row per call (twins merged) with messages or tools, in attempts in which spans wait for a place.
-- `system`: its leading system messages. `tools`: the names of its tools. `asks`: the tools that its reply asks for. `said`: hash of
-- its tools and of all messages up to the last reply among them, NULL without a reply. `replies`: for each choice, the same hash
-- over all its messages and the reply to them.
-- Inputs: nodes, spans, waiting, llm_twins.
-- Rule: messages are the same if role, content, and the names and arguments of their tool calls are.
WITH read AS (
    SELECT
        nodes.node,
        nodes.attempt,
        nodes.start_ns,
        list_sort(list_distinct(json_extract_string(TRY(spans.attributes['gen_ai.tool.definitions']::JSON), '$..name'))) AS tools,
        messages_of(spans.input_messages) AS asked,
        messages_of(spans.output_messages) AS answered
    FROM nodes
    SEMI JOIN waiting USING (attempt)
    ANTI JOIN llm_twins USING (node)
    JOIN spans USING (record_offset, record_index)
    WHERE nodes.op = 'llm'
        -- By a column of each side, so that DuckDB reads no texts where no call is asked for.
        AND CASE nodes.op
            WHEN 'llm' THEN spans.input_messages IS NOT NULL
                OR spans.output_messages IS NOT NULL
                OR spans.attributes['gen_ai.tool.definitions'] IS NOT NULL
        END
),
hashed AS (
    SELECT
        *,
        [m.role FOR m IN asked] AS roles,
        [message_hash(m, m.role) FOR m IN asked] AS hashes,
        [message_hash(m, 'assistant') FOR m IN answered] AS reply_hashes
    FROM read
),
marked AS (
    SELECT
        *,
        last_reply(roles) AS last_reply
    FROM hashed
)
SELECT
    node,
    attempt,
    start_ns,
    array_to_string(
        [m.content FOR m IN asked[1:coalesce(first_other(roles) - 1, len(roles))]],
        chr(10)
    ) AS system,
    tools,
    list_distinct([t.function.name FOR t IN flatten([m.tool_calls FOR m IN answered])]) AS asks,
    CASE WHEN last_reply IS NOT NULL THEN hash(tools, hashes[1:last_reply]) END AS said,
    CASE WHEN len(hashes) > 0 THEN [hash(tools, list_append(hashes, r)) FOR r IN reply_hashes] END AS replies
FROM marked
