-- The results of the rollouts of a task: each answer, and each way to fail, with its reward.
-- Grain: one row per (demonstration, outcome, answer or error). Inputs: rollouts, spans. Parameters: run, task_id; limit (NULL: all; one or two more
-- are not hidden).
-- Rule: the most frequent first. Columns that end with `_in_all` are over all rollouts except demonstrations, whose answers were given to the policy:
-- these are counted separately, and do not solve the task. `answer`: of a JSON object its first key of answer, output, result, reply, text that is not
-- empty. `cut_off`: rollouts with a reply that ended at its limit of tokens; `uncalled`: rollouts that ended before their first call. `rollout_id` is
-- the newest of them, of `epoch`.
WITH ended AS (
    SELECT
        rollout_id,
        attempt_id,
        epoch,
        mode,
        outcome,
        CASE
            WHEN outcome <> 'ok' THEN error
            WHEN json_valid(output) THEN
                list_any_value(json_extract_string(output, ['$.answer', '$.output', '$.result', '$.reply', '$.text', '$']))
            ELSE output
        END AS answer,
        reward,
        success AND NOT demonstration AS success,
        demonstration,
        calls
    FROM rollouts
    WHERE run = $run AND task_id = $task_id AND state = 'counts'
),
cut_off AS (
    SELECT DISTINCT rollout_id, attempt_id
    FROM spans
    WHERE op = 'llm' AND contains(finish_reasons, '"length"') AND rollout_id IN (SELECT rollout_id FROM ended)
),
answers AS (
    SELECT
        demonstration,
        outcome,
        answer,
        count(*) AS rollouts,
        count(*) FILTER (success) AS solved,
        count(*) FILTER (cut_off.rollout_id IS NOT NULL) AS cut_off,
        count(*) FILTER (calls = 0) AS uncalled,
        avg(reward) AS reward,
        max(reward) AS best,
        arg_max(rollout_id, (epoch, mode, rollout_id)) AS rollout_id,
        arg_max(epoch, (epoch, mode, rollout_id)) AS epoch
    FROM ended
    LEFT JOIN cut_off USING (rollout_id, attempt_id)
    GROUP BY ALL
)
SELECT
    *,
    coalesce(sum(rollouts) FILTER (NOT demonstration) OVER (), 0)::BIGINT AS rollouts_in_all,
    coalesce(sum(rollouts) FILTER (demonstration) OVER (), 0)::BIGINT AS demonstrations_in_all,
    sum(solved) OVER ()::BIGINT AS solved_in_all,
    sum(cut_off) OVER ()::BIGINT AS cut_off_in_all,
    sum(uncalled) OVER ()::BIGINT AS uncalled_in_all,
    max(best) FILTER (NOT demonstration) OVER () AS best_in_all,
    count(*) FILTER (NOT demonstration) OVER () AS answers_in_all,
    count(*) OVER () AS rows_in_all
FROM answers
QUALIFY $limit IS NULL
    OR count(*) OVER () <= $limit + 2
    OR row_number() OVER (ORDER BY rollouts DESC, reward DESC NULLS LAST, answer) <= $limit
ORDER BY rollouts DESC, reward DESC NULLS LAST, answer
