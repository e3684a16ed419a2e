-- Second records of an LLM or tool call: the agent's instrumentation recorded a call of the gateway, or recorded a call twice.
-- Grain: one row per span that another record represents (`twin_of`, a span_id). `start_ns` distinguishes calls that share their ids (an agent
-- seeds `random`).
-- Inputs: stored.span_tree, stored.scored_attempts, spans.
-- Rule: as the epoch was derived. In attempts of no derived epoch, records with one response id are one call, which the gateway's record
-- represents, else the earliest. Tools with one call id and without two different names are one if they begin before the first of them ends.
-- Spans without a scope are not compared.
WITH derived AS (
    SELECT
        twin.rollout_id,
        twin.attempt_id,
        twin.trace_id,
        twin.span_id,
        twin.start_ns,
        min(kept.span_id) AS twin_of
    FROM stored.span_tree AS twin
    JOIN stored.span_tree AS kept
        ON kept.rollout_id = twin.rollout_id AND kept.attempt_id = twin.attempt_id AND kept.node = twin.twin_of
    WHERE twin.twin_of IS NOT NULL
    GROUP BY twin.rollout_id, twin.attempt_id, twin.trace_id, twin.span_id, twin.start_ns
),
records AS (
    SELECT DISTINCT
        spans.rollout_id,
        attempt_id,
        trace_id,
        span_id,
        op,
        CASE op WHEN 'llm' THEN response_id ELSE tool_call_id END AS id,
        tool_name,
        spans.start_ns,
        end_ns,
        policy IS NULL AS instrumented
    FROM spans
    LEFT JOIN (SELECT rollout_id, attempt_id, counts FROM stored.scored_attempts WHERE counts) AS derived_attempts
        USING (rollout_id, attempt_id)
    WHERE ((op = 'llm' AND response_id IS NOT NULL) OR (op = 'tool' AND tool_call_id IS NOT NULL))
        AND spans.rollout_id IS NOT NULL
        AND derived_attempts.counts IS NULL
),
ranked AS (
    SELECT
        *,
        first_value(span_id) OVER calls AS kept,
        row_number() OVER calls AS place,
        op = 'llm'
        OR (coalesce(start_ns <= first_value(end_ns) OVER calls, true) AND coalesce(tool_name = first_value(tool_name) OVER calls, true)) AS same
    FROM records
    WINDOW calls AS (
        PARTITION BY rollout_id, attempt_id, op, id ORDER BY instrumented, start_ns, trace_id, span_id
    )
)
SELECT rollout_id, attempt_id, trace_id, span_id, start_ns, twin_of FROM derived
UNION ALL
SELECT rollout_id, attempt_id, trace_id, span_id, start_ns, min(kept)
FROM ranked
WHERE place > 1 AND same
GROUP BY rollout_id, attempt_id, trace_id, span_id, start_ns
