-- Names of agents by the rules of the settings (`agent_rules`), for conventions that ingest does not know.
-- Grain: one row per span on which a rule finds a name.
-- Inputs: nodes, spans, user_rules (rank, source, key, pattern, span_name: regex that the span's name has to match), attribute_aliases.
-- Rule: the first rule that gives a name wins. If an attribute became a column of spans, the column is read.
WITH texts AS (
    -- Of spans alone: without rules nothing is read.
    SELECT
        spans.record_offset,
        spans.record_index,
        user_rules.rank,
        user_rules.pattern,
        CASE user_rules.source
            WHEN 'span_name' THEN spans.name
            WHEN 'resource' THEN spans.resource[user_rules.key]
            ELSE coalesce(spans.attributes[user_rules.key], CASE aliases.column_name
                WHEN 'agent_name' THEN CASE WHEN spans.agent_name_source = user_rules.key THEN spans.agent_name END
                WHEN 'operation' THEN spans.operation
                WHEN 'span_role' THEN spans.span_role
                WHEN 'model' THEN spans.model
                WHEN 'tool_name' THEN spans.tool_name
                WHEN 'reward_name' THEN spans.reward_name
                WHEN 'agent_id' THEN spans.agent_id
                WHEN 'conversation_id' THEN spans.conversation_id
                WHEN 'provider' THEN spans.provider
            END)
        END AS text
    FROM spans
    JOIN user_rules ON regexp_matches(spans.name, user_rules.span_name)
    LEFT JOIN attribute_aliases AS aliases ON aliases.key = user_rules.key
),
named AS (
    SELECT record_offset, record_index, min_by(regexp_extract(text, pattern, 1), rank) AS agent_name, min(rank) AS rank
    FROM texts
    WHERE regexp_extract(text, pattern, 1) <> ''
    GROUP BY record_offset, record_index
)
SELECT nodes.node, named.agent_name, named.rank
FROM named
JOIN nodes USING (record_offset, record_index)
