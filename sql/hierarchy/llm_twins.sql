-- LLM calls that were seen twice: by the gateway, which has the token ids, and by the agent's instrumentation, which
-- knows whose call it was.
-- Grain: one row per span that is the other's twin: `node` is dropped from training, `kept` stays and takes its place.
-- Inputs: epoch_spans.
-- Rule: LLM spans of one attempt with the same response id are one call; the one with token ids stays (else the
-- earliest).
WITH llm AS (
    SELECT node, rollout_id, attempt_id, response_id, prompt_ids IS NOT NULL AND response_ids IS NOT NULL AS has_ids
    FROM epoch_spans
    WHERE op = 'llm' AND response_id IS NOT NULL
),
keepers AS (
    SELECT
        node,
        has_ids,
        first_value(node) OVER (
            PARTITION BY rollout_id, attempt_id, response_id ORDER BY has_ids DESC, node
        ) AS kept
    FROM llm
)
SELECT node, kept, 'response_id' AS method
FROM keepers
WHERE node <> kept
ORDER BY node
