-- LLM calls of the epoch's rollouts in attempts that do not count: they train nothing.
-- Grain: one row per (call, choice); such calls are in no tree, so they have no `call_id`. `reason`: why the attempt does not count
-- (`superseded`, `infrastructure`, `no_outcome`), `unfinished` (it has no root span), `no_attempt` (the span names none). `agent` is the name
-- in the span itself.
-- Inputs: spans, scored_attempts, epoch_scope, planned.
-- Rule: a record without token ids is not counted if another record has its response id.
WITH rollouts AS (
    SELECT DISTINCT rollout_id
    FROM spans
    SEMI JOIN epoch_scope USING (run, epoch, mode)
    WHERE op IN ('rollout', 'rollout.start') AND (rollout_id IN (FROM planned) OR NOT EXISTS (FROM planned))
),
calls AS (
    SELECT
        spans.rollout_id,
        spans.attempt_id,
        spans.span_id,
        spans.policy,
        spans.agent_name AS agent,
        CASE
            WHEN spans.attempt_id IS NULL THEN 'no_attempt'
            WHEN attempts.attempt_id IS NULL THEN 'unfinished'
            ELSE attempts.left_out
        END AS reason,
        spans.choice_lengths
    FROM spans
    SEMI JOIN rollouts USING (rollout_id)
    LEFT JOIN scored_attempts AS attempts USING (rollout_id, attempt_id)
    WHERE spans.op = 'llm' AND attempts.counts IS DISTINCT FROM true
    QUALIFY spans.response_id IS NULL
        OR spans.prompt_id_count IS NOT NULL
        OR row_number() OVER (
            PARTITION BY spans.rollout_id, spans.attempt_id, spans.response_id
            ORDER BY spans.prompt_id_count IS NULL, spans.policy IS NULL, spans.start_ns, spans.content_hash
        ) = 1
)
SELECT * EXCLUDE (choice_lengths), unnest(range(greatest(coalesce(len(choice_lengths), 1), 1))) AS choice
FROM calls
ORDER BY ALL
