-- The reward of every rollout that counts (`assign: final`).
-- Grain: one row per rollout. `reward` is NULL where the rollout is left out of training; `left_out` says why.
-- Inputs: epoch_spans, span_tree, scored_attempts, reward_settings (one row: failure_reward, reward_match,
-- success_reward, grader: its digest).
-- Rule: the last finite reward named `reward` (of any name where none is so named), whoever emitted it unless
-- reward_match narrows that; a former grader's do not count. An attempt that the agent failed gets failure_reward instead.
WITH candidates AS (
    SELECT
        spans.rollout_id,
        spans.attempt_id,
        spans.reward,
        spans.reward_name,
        coalesce(spans.end_ns, spans.start_ns) AS emitted_ns,
        spans.node
    FROM epoch_spans AS spans
    JOIN span_tree USING (node)
    CROSS JOIN reward_settings
    WHERE spans.reward IS NOT NULL
        AND isfinite(spans.reward)
        AND (spans.reward_source IS DISTINCT FROM 'grader' OR coalesce(spans.attributes['lightning.reward.grader'], '') = reward_settings.grader)
        AND (reward_settings.reward_match IS NULL OR regexp_matches(coalesce(span_tree.agent, ''), reward_settings.reward_match))
),
chosen AS (
    SELECT rollout_id, attempt_id, reward, reward_name
    FROM candidates
    QUALIFY row_number() OVER (
        PARTITION BY rollout_id, attempt_id ORDER BY reward_name = 'reward' DESC, emitted_ns DESC, node DESC
    ) = 1
)
SELECT
    attempts.rollout_id,
    attempts.attempt_id,
    attempts.mode,
    attempts.group_id,
    attempts.task_id,
    attempts.outcome,
    CASE WHEN attempts.outcome = 'ok' THEN chosen.reward ELSE reward_settings.failure_reward END AS reward,
    attempts.outcome = 'ok' AND coalesce(chosen.reward >= reward_settings.success_reward, false) AS success,
    CASE WHEN attempts.outcome = 'ok' THEN chosen.reward_name ELSE 'failure_reward' END AS source,
    CASE
        WHEN attempts.outcome <> 'ok' AND reward_settings.failure_reward IS NULL THEN 'failed_attempt'
        WHEN attempts.outcome = 'ok' AND chosen.reward IS NULL THEN 'no_reward'
    END AS left_out
FROM scored_attempts AS attempts
CROSS JOIN reward_settings
LEFT JOIN chosen USING (rollout_id, attempt_id)
WHERE attempts.counts
ORDER BY attempts.rollout_id
