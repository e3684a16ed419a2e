-- What the rules of automatic intermediate rewarding (AIR) give: a failing tool call costs 0.1, say.
-- Grain: one row per (rule, span) that is given something.
-- Inputs: nodes, places, spans, air_rules (name, value, op, tool, status, attribute, column_name, pattern, per, cap).
-- Rule: a span matches where every condition of the rule holds; an LLM call seen twice counts once. `per: rollout` gives
-- the value for the first match only; `cap` bounds what a rule gives an attempt, in absolute value.
WITH shaped AS (
    SELECT
        nodes.node,
        nodes.rollout_id,
        nodes.attempt_id,
        coalesce(nodes.end_ns, nodes.start_ns) AS emitted_ns,
        nodes.record_offset,
        nodes.record_index,
        rules.*
    FROM nodes
    JOIN air_rules AS rules
        ON coalesce(rules.op = nodes.op, true)
        AND coalesce(rules.status = nodes.status, true)
        AND CASE WHEN rules.tool IS NULL THEN true ELSE coalesce(regexp_matches(nodes.tool_name, rules.tool), false) END
    ANTI JOIN (SELECT node FROM places WHERE twin_of IS NOT NULL) AS twins ON twins.node = nodes.node
),
texts AS (
    SELECT
        shaped.node,
        shaped.name,
        shaped.pattern,
        CASE shaped.column_name
            WHEN 'name' THEN spans.name
            WHEN 'status_message' THEN spans.status_message
            WHEN 'error' THEN spans.error
            WHEN 'outcome' THEN spans.outcome
            WHEN 'output' THEN spans.output
            WHEN 'agent_name' THEN spans.agent_name
            WHEN 'model' THEN spans.model
            WHEN 'policy' THEN spans.policy
            WHEN 'finish_reasons' THEN spans.finish_reasons
            WHEN 'input_messages' THEN spans.input_messages
            WHEN 'output_messages' THEN spans.output_messages
            WHEN 'untrainable' THEN spans.untrainable
            WHEN 'tool_name' THEN spans.tool_name
            WHEN 'tool_arguments' THEN spans.tool_arguments
            WHEN 'tool_result' THEN spans.tool_result
            WHEN 'operation' THEN spans.operation
            WHEN 'span_role' THEN spans.span_role
            WHEN 'events' THEN spans.events
            ELSE spans.attributes[shaped.attribute]
        END AS found
    FROM shaped
    JOIN spans USING (record_offset, record_index)
    WHERE shaped.attribute IS NOT NULL OR shaped.pattern IS NOT NULL
),
matches AS (
    SELECT shaped.* FROM shaped WHERE attribute IS NULL AND pattern IS NULL
    UNION ALL
    SELECT shaped.*
    FROM shaped
    JOIN texts USING (node, name)
    WHERE texts.found IS NOT NULL AND CASE WHEN texts.pattern IS NULL THEN true ELSE regexp_matches(texts.found, texts.pattern) END
),
counted AS (
    SELECT *, row_number() OVER (PARTITION BY rollout_id, attempt_id, name ORDER BY emitted_ns, node) AS place
    FROM matches
)
SELECT
    rollout_id,
    attempt_id,
    node,
    name,
    CASE
        WHEN cap IS NULL THEN value
        ELSE sign(value) * (least(place * abs(value), cap) - least((place - 1) * abs(value), cap))
    END AS given,
    emitted_ns
FROM counted
WHERE (per = 'match' OR place = 1) AND (cap IS NULL OR (place - 1) * abs(value) < cap)
ORDER BY node, name
