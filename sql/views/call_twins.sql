-- Second records of an LLM call: the agent's instrumentation saw what the gateway recorded, or it saw a call twice.
-- Grain: one row per LLM span that another record represents (`twin_of`, a span_id). Inputs: stored.span_tree,
-- stored.scored_attempts, spans.
-- `start_ns` distinguishes calls that share their ids (an agent seeds `random`).
-- Rule: as the epoch was derived. In attempts of no derived epoch, records with one response id are one call; the
-- gateway's represents it, else the earliest. Spans without a scope are not compared.
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
        spans.rollout_id, attempt_id, trace_id, span_id, response_id, spans.start_ns, policy IS NULL AS instrumented
    FROM spans
    LEFT JOIN (SELECT rollout_id, attempt_id, counts FROM stored.scored_attempts WHERE counts) AS derived_attempts
        USING (rollout_id, attempt_id)
    WHERE op = 'llm' AND response_id IS NOT NULL AND spans.rollout_id IS NOT NULL AND derived_attempts.counts IS NULL
),
ranked AS (
    SELECT
        *,
        first_value(span_id) OVER calls AS kept,
        row_number() OVER calls AS place
    FROM records
    WINDOW calls AS (
        PARTITION BY rollout_id, attempt_id, response_id ORDER BY instrumented, start_ns, trace_id, span_id
    )
)
SELECT rollout_id, attempt_id, trace_id, span_id, start_ns, twin_of FROM derived
UNION ALL
SELECT rollout_id, attempt_id, trace_id, span_id, start_ns, min(kept)
FROM ranked
WHERE place > 1
GROUP BY rollout_id, attempt_id, trace_id, span_id, start_ns
