-- What agents in production did, rollout by rollout, and whether this epoch learns from it.
-- Grain: one row per (rollout_id, attempt_id) that sent spans and that no run rolled out. `group_id`: rewards of one group are compared. `task`,
-- `output`: JSON, as given when the rollout was opened and ended at the gateway (NULL: not given). `reply`: the last reply of a model, JSON.
-- `left_out` says why the epoch does not learn from it; NULL: it does.
-- Inputs: spans, learn_choice (one row: run, epoch, since_ns, until_ns, ended_before_ns, group_by, without_ids: also learn from calls without
-- token ids), learn_attributes (key, value), learn_filtered (rollout_id, attempt_id).
-- Rule: a rollout is over when its agent has ended it, or when it has been silent for a while; of several ends the first counts. A failed rollout
-- is learned from even if it failed before its first call. A rollout is learned from once: a root span names the epoch.
WITH executions AS (
    SELECT
        rollout_id,
        attempt_id,
        coalesce(min(start_ns) FILTER (op = 'rollout.opened'), min(start_ns) FILTER (op <> 'rollout')) AS start_ns,
        arg_min(start_ns, record_offset) FILTER (op = 'rollout.ended') AS ended_ns,
        coalesce(ended_ns, max(coalesce(end_ns, start_ns)) FILTER (op <> 'rollout')) AS end_ns,
        min(record_offset) AS first_offset,
        count(*) FILTER (op = 'llm' AND (response_id_count > 0 OR (SELECT without_ids FROM learn_choice))) AS sampled_calls,
        any_value(group_id) FILTER (op = 'rollout.opened') AS opened_group,
        any_value(task_id) FILTER (op = 'rollout.opened') AS task_id,
        any_value(task) FILTER (op = 'rollout.opened') AS task,
        arg_min(outcome, record_offset) FILTER (op = 'rollout.ended') AS outcome,
        -- Where the first end says nothing of one, that of a later end does not count either.
        arg_min({'output': output, 'error': error}, record_offset) FILTER (op = 'rollout.ended') AS ended_with,
        arg_max(output_messages, (start_ns, span_id)) FILTER (op = 'llm' AND coalesce(sender, 'gateway') = 'gateway') AS reply,
        bool_or(op = 'rollout.start') AS rolled_out,
        min(run) FILTER (op = 'rollout') AS run,
        min(epoch) FILTER (op = 'rollout') AS epoch
    FROM spans
    WHERE rollout_id IS NOT NULL AND attempt_id IS NOT NULL
    GROUP BY rollout_id, attempt_id
),
labelled AS (
    SELECT spans.rollout_id, spans.attempt_id, count(DISTINCT wanted.key) AS found
    FROM spans
    JOIN learn_attributes AS wanted
        ON coalesce(spans.attributes[wanted.key], spans.resource[wanted.key]) = wanted.value
    GROUP BY ALL
),
grouped AS (
    SELECT spans.rollout_id, spans.attempt_id, min(coalesce(attributes[choice.group_by], resource[choice.group_by])) AS value
    FROM spans
    CROSS JOIN learn_choice AS choice
    WHERE choice.group_by IS NOT NULL
    GROUP BY ALL
)
SELECT
    executions.rollout_id,
    executions.attempt_id,
    coalesce(CASE WHEN choice.group_by IS NULL THEN opened_group ELSE grouped.value END, executions.rollout_id) AS group_id,
    executions.task_id,
    executions.task,
    coalesce(executions.outcome, 'ok') AS outcome,
    executions.ended_with.error AS error,
    executions.start_ns,
    executions.end_ns,
    executions.first_offset,
    executions.ended_with.output AS output,
    executions.reply,
    executions.run IS NOT NULL AS adopted,
    CASE
        WHEN executions.run IS NOT NULL AND (executions.run, executions.epoch) <> (choice.run, choice.epoch) THEN 'learned_from'
        WHEN executions.sampled_calls = 0 AND coalesce(executions.outcome, 'ok') = 'ok' THEN 'no_sampled_call'
        WHEN executions.start_ns < choice.since_ns OR executions.start_ns >= choice.until_ns THEN 'time'
        WHEN executions.ended_ns IS NULL AND executions.end_ns >= choice.ended_before_ns THEN 'not_over'
        WHEN coalesce(labelled.found, 0) < (SELECT count(*) FROM learn_attributes) THEN 'attributes'
        WHEN filtered.rollout_id IS NULL THEN 'filter'
    END AS left_out
FROM executions
CROSS JOIN learn_choice AS choice
LEFT JOIN labelled USING (rollout_id, attempt_id)
LEFT JOIN grouped USING (rollout_id, attempt_id)
LEFT JOIN learn_filtered AS filtered
    ON filtered.rollout_id = executions.rollout_id AND filtered.attempt_id = executions.attempt_id
WHERE NOT executions.rolled_out
ORDER BY executions.rollout_id, executions.attempt_id
