-- The rollouts of a run that pass the filters, the newest epoch first.
-- Grain: one row per rollout. Inputs: rollouts, calls, exclusions, rollout_fates.
-- Parameters, NULL for any: run, epoch, mode, task, agent, version (of one of its calls), fate (of rollout_fates, or `counted`), reason (why one of its
-- calls is not trained on), solved (not by a demonstration), low, high (reward), words (in task or output); sort, limit, skip.
SELECT
    run,
    epoch,
    mode,
    rollout_id,
    group_id,
    task_id,
    task,
    task_text,
    output,
    state,
    outcome,
    error,
    reward,
    success,
    demonstration,
    calls,
    response_tokens,
    seconds,
    count(*) OVER () AS found
FROM rollouts
WHERE run = $run
    AND ($epoch IS NULL OR epoch = $epoch)
    AND ($mode IS NULL OR mode = $mode)
    AND ($task IS NULL OR task_id = $task)
    AND ($solved IS NULL OR (success = $solved AND NOT demonstration))
    AND ($low IS NULL OR reward >= $low)
    AND ($high IS NULL OR reward <= $high)
    AND ($words IS NULL OR contains(lower(concat_ws(' ', task, output)), lower($words)))
    AND (
        ($agent IS NULL AND $version IS NULL)
        OR (rollout_id, attempt_id) IN (
            SELECT (rollout_id, attempt_id)
            FROM calls
            WHERE run = $run AND ($agent IS NULL OR agent = $agent) AND ($version IS NULL OR policy_version = $version)
        )
    )
    AND ($reason IS NULL OR rollout_id IN (SELECT rollout_id FROM exclusions WHERE run = $run AND reason = $reason))
    AND (
        $fate IS NULL
        OR (mode = 'train' AND (epoch, rollout_id) IN (
            SELECT (epoch, rollout_id) FROM rollout_fates WHERE run = $run AND (fate = $fate OR ($fate = 'counted' AND counted))
        ))
    )
ORDER BY
    CASE $sort WHEN 'worst' THEN reward WHEN 'best' THEN -reward WHEN 'longest' THEN -response_tokens WHEN 'slowest' THEN -seconds END NULLS LAST,
    epoch DESC,
    mode DESC,
    rollout_id
LIMIT $limit OFFSET $skip
