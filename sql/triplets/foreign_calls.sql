-- Calls without token ids, of models elsewhere, that an imitating policy (`sft`) takes as examples: their texts.
-- Grain: one row per LLM span of attempts that count. `asked`, `answered`, `tools`: messages and tools as OpenAI's JSON, whatever convention the
-- span follows; NULL: not recorded, or not only text. `cut_off`: the reply ended at its limit of tokens.
-- Inputs: spans, counted_attempts, tokenizing (policy, every; no row: no policy imitates).
-- Rule: imported chats (which only a holder of the secret can send) are always taken; other calls if the policy's settings say so (`every`). The
-- first of these forms that the span has is read: OpenAI's messages, GenAI's parts, OpenInference's numbered attributes, MLflow's inputs and
-- outputs. Of several choices the first is read.
WITH calls AS (
    SELECT spans.*, tokenizing.policy AS taker
    FROM spans
    SEMI JOIN counted_attempts USING (rollout_id, attempt_id)
    JOIN tokenizing
        ON tokenizing.every
        OR coalesce(spans.resource['lightning.imported'] = 'chat' AND coalesce(spans.sender, 'secret') = 'secret', false)
    WHERE spans.op = 'llm' AND spans.policy IS NULL AND spans.response_id_count IS NULL AND spans.status <> 'error'
),
written AS (
    -- OpenInference: one attribute a field of a message.
    SELECT
        record_offset,
        record_index,
        part.side AS side,
        TRY_CAST(part.place AS INTEGER) AS place,
        TRY_CAST(regexp_extract(part.field, '^(?:tool_calls|contents)\.(\d+)\.', 1) AS INTEGER) AS nth,
        regexp_replace(part.field, '^(tool_calls|contents)\.\d+\.', '') AS field,
        value
    FROM (
        SELECT
            record_offset,
            record_index,
            regexp_extract(entry.key, '^llm\.(input|output)_messages\.(\d+)\.message\.(.+)$', ['side', 'place', 'field']) AS part,
            entry.value AS value
        FROM (SELECT record_offset, record_index, unnest(map_entries(attributes)) AS entry FROM calls)
        WHERE starts_with(entry.key, 'llm.input_messages.') OR starts_with(entry.key, 'llm.output_messages.')
    )
),
parts AS (
    -- A tool call, or a part of the content, or (without `nth`) what the message has once.
    SELECT
        record_offset,
        record_index,
        side,
        place,
        nth,
        max(value) FILTER (field = 'role') AS role,
        max(value) FILTER (field IN ('content', 'message_content.text')) AS content,
        max(value) FILTER (field = 'tool_call_id') AS answers,
        bool_or(starts_with(field, 'message_content.') AND field NOT IN ('message_content.type', 'message_content.text')) AS no_text,
        CASE
            WHEN bool_or(field = 'tool_call.function.name') THEN
                openai_call(
                    max(value) FILTER (field = 'tool_call.id'),
                    max(value) FILTER (field = 'tool_call.function.name'),
                    max(value) FILTER (field = 'tool_call.function.arguments')
                )
        END AS tool_call
    FROM written
    GROUP BY ALL
),
numbered AS (
    SELECT
        record_offset,
        record_index,
        side,
        place,
        CASE
            WHEN NOT bool_or(no_text) THEN openai_message(
                max(role),
                string_agg(content, chr(10) ORDER BY nth),
                list(tool_call ORDER BY nth) FILTER (tool_call IS NOT NULL),
                max(answers)
            )
        END AS message
    FROM parts
    GROUP BY ALL
),
inferred AS (
    SELECT
        record_offset,
        record_index,
        CASE WHEN count(*) = count(message) THEN to_json(list(message ORDER BY place) FILTER (side = 'input')) END AS asked,
        any_value(message) FILTER (side = 'output' AND place = 0) AS answered
    FROM numbered
    GROUP BY ALL
),
recorded AS (
    SELECT
        *,
        CASE WHEN json_valid(input_messages) THEN input_messages END AS request,
        CASE WHEN json_valid(output_messages) THEN output_messages END AS reply,
        CASE WHEN json_valid(attributes['mlflow.spanInputs']) THEN attributes['mlflow.spanInputs'] END AS mlflow_input,
        CASE WHEN json_valid(attributes['mlflow.spanOutputs']) THEN attributes['mlflow.spanOutputs'] END AS mlflow_output,
        json_exists(request, '$[0].parts') AS in_parts,
        CASE
            WHEN json_valid(attributes['gen_ai.system_instructions']) THEN json_array(json_object(
                'role', 'system', 'parts', attributes['gen_ai.system_instructions']::JSON
            ))
        END AS instructions
    FROM calls
)
SELECT
    rollout_id,
    attempt_id,
    record_offset,
    record_index,
    taker AS policy,
    coalesce(
        CASE
            WHEN in_parts AND instructions IS NOT NULL
                THEN to_json(list_concat(openai_messages(instructions), openai_messages(request)))
            WHEN in_parts THEN to_json(openai_messages(request))
            ELSE request::JSON
        END,
        inferred.asked,
        json_extract(mlflow_input, '$.messages')
    )::VARCHAR AS asked,
    coalesce(
        CASE WHEN json_exists(reply, '$[0].parts') THEN openai_messages(reply)[1] ELSE json_extract(reply, '$[0]') END,
        inferred.answered,
        json_extract(mlflow_output, '$.choices[0].message')
    )::VARCHAR AS answered,
    coalesce(
        attributes['gen_ai.tool.definitions'],
        to_json(nullif([
            entry.value::JSON FOR entry IN map_entries(attributes)
            IF regexp_full_match(entry.key, 'llm\.tools\.\d+\.tool\.json_schema') AND json_valid(entry.value)
        ], []))::VARCHAR,
        json_extract(mlflow_input, '$.tools')::VARCHAR
    ) AS tools,
    coalesce(
        finish_reasons, attributes['llm.finish_reason'], json_extract_string(mlflow_output, '$.choices[0].finish_reason')
    ) SIMILAR TO '.*(length|max_tokens).*' AS cut_off
FROM recorded
LEFT JOIN inferred USING (record_offset, record_index)
