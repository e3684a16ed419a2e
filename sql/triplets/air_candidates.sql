-- The spans that may match a rule of automatic intermediate rewarding (`reward.air`): its conditions on op, tool and status hold.
-- Grain: one row per (rule, span). `call` is the call that the span is a record of. Empty without rules.
-- Inputs: nodes, bucket, llm_twins, tool_twins, air_rules.
-- Rule: an LLM or tool call that was recorded twice failed if any of its records says so.
-- A table of its own, so that DuckDB knows how few there are (normally none) before `air_matches` reads texts for them.
WITH asked AS MATERIALIZED (
    SELECT
        nodes.node,
        coalesce(tool_twins.kept, llm_twins.kept, nodes.node) AS call,
        bucket.rollout_id,
        bucket.attempt_id,
        nodes.tool_name,
        nodes.status AS found_status,
        coalesce(nodes.end_ns, nodes.start_ns) AS emitted_ns,
        nodes.record_offset,
        nodes.record_index,
        rules.*
    FROM nodes
    JOIN bucket USING (attempt)
    JOIN air_rules AS rules ON coalesce(rules.op = nodes.op, true)
    LEFT JOIN tool_twins ON tool_twins.node = nodes.node
    LEFT JOIN llm_twins ON llm_twins.node = nodes.node
),
together AS (
    -- What the records of one call say; 'error' < 'ok' < 'unset'.
    SELECT name, call, min(found_status) AS found_status, max(tool_name) AS tool_name
    FROM asked
    GROUP BY name, call
    HAVING count(*) > 1
)
SELECT asked.*
FROM asked
LEFT JOIN together USING (name, call)
WHERE coalesce(asked.status = coalesce(together.found_status, asked.found_status), true)
    AND CASE
        WHEN asked.tool IS NULL THEN true
        ELSE coalesce(regexp_matches(coalesce(together.tool_name, asked.tool_name), asked.tool), false)
    END
