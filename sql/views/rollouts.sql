-- Every rollout, with the result that counts; a rollout appears as soon as its spans are decoded.
-- Grain: one row per (run, epoch, mode, rollout_id). If no attempt counts (yet), the latest one represents the rollout, with its `state`.
-- Inputs: attempts, epoch_manifests, spans, call_twins, stored.rollout_rewards, stored.policy_calls.
-- Rule: `reward` and `success` are as the epoch was derived (failure_reward, weights, former graders left out). Before that, `reward` is the last
-- finite one emitted, one named `reward` first, and `success` is not known. `calls` counts every call once; `response_tokens` are theirs.
-- `weight`: how many times as often its task was drawn as a task of weight 1 (`tasks.sampler`); NULL if all were drawn alike.
-- `demonstration`: a policy that imitates (sft) trained on a given reply of it (structured outputs, a prefilled text), or it was imported: its
-- output is no achievement of the policy, whatever its reward. `task_text` is the task's text: of a JSON object its first key of question,
-- prompt, problem, instruction, task, text, query, input; else the task as it is.
WITH results AS (
    SELECT *, count(*) OVER (PARTITION BY run, epoch, mode, rollout_id) AS attempts
    FROM attempts
    QUALIFY row_number() OVER (
        PARTITION BY run, epoch, mode, rollout_id ORDER BY state = 'counts' DESC, started DESC, attempt_id
    ) = 1
),
emitted AS (
    SELECT
        rollout_id,
        attempt_id,
        arg_max(reward, (reward_name = 'reward', coalesce(end_ns, start_ns), record_offset, record_index)) AS reward
    FROM spans
    WHERE isfinite(reward) AND reward_source IS DISTINCT FROM 'refused'
    GROUP BY rollout_id, attempt_id
),
called AS (
    SELECT spans.rollout_id, spans.attempt_id, count(*) AS calls, sum(spans.output_tokens) AS response_tokens
    FROM spans
    LEFT JOIN call_twins AS twins
        ON twins.rollout_id = spans.rollout_id
        AND twins.attempt_id = spans.attempt_id
        AND twins.trace_id = spans.trace_id
        AND twins.span_id = spans.span_id
        AND twins.start_ns IS NOT DISTINCT FROM spans.start_ns
    WHERE spans.op = 'llm' AND twins.twin_of IS NULL
    GROUP BY spans.rollout_id, spans.attempt_id
),
shown AS (
    -- One that does not imitate leaves such calls out as untrainable.
    SELECT DISTINCT calls.rollout_id, calls.attempt_id
    FROM stored.policy_calls AS calls
    JOIN spans
        ON spans.rollout_id = calls.rollout_id
        AND spans.attempt_id = calls.attempt_id
        AND spans.span_id = calls.span_id
        AND spans.start_ns IS NOT DISTINCT FROM calls.start_ns
    WHERE calls.other_sampling
        AND is_given(spans.untrainable)
        AND coalesce(calls.left_out <> 'failed_call' AND NOT starts_with(calls.left_out, 'untrainable'), true)
    UNION
    SELECT DISTINCT rollout_id, attempt_id FROM spans WHERE op = 'rollout' AND resource['lightning.imported'] IS NOT NULL
)
SELECT
    results.run,
    results.epoch,
    results.mode,
    results.group_id,
    results.task_id,
    manifests.weights[results.task_id] AS weight,
    results.rollout_id,
    results.attempt_id,
    results.state,
    results.attempts,
    results.outcome,
    results.error,
    CASE WHEN derived.rollout_id IS NULL THEN emitted.reward ELSE derived.reward END AS reward,
    derived.success,
    shown.rollout_id IS NOT NULL AS demonstration,
    coalesce(called.calls, 0) AS calls,
    coalesce(called.response_tokens, 0)::BIGINT AS response_tokens,
    results.seconds,
    results.started,
    results.ended,
    results.task,
    CASE
        WHEN json_valid(results.task) THEN
            list_any_value(
                json_extract_string(
                    results.task,
                    ['$.question', '$.prompt', '$.problem', '$.instruction', '$.task', '$.text', '$.query', '$.input', '$']
                )
            )
        ELSE results.task
    END AS task_text,
    results.output,
    results.prompts
FROM results
LEFT JOIN epoch_manifests AS manifests USING (run, epoch, mode)
LEFT JOIN emitted USING (rollout_id, attempt_id)
LEFT JOIN called USING (rollout_id, attempt_id)
LEFT JOIN shown USING (rollout_id, attempt_id)
LEFT JOIN stored.rollout_rewards AS derived
    ON derived.rollout_id = results.rollout_id AND derived.attempt_id = results.attempt_id
