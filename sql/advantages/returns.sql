-- What the estimators compare: the return of every rollout at every step.
-- Grain: one row per (policy, group, agent, step, rollout). With `assign: final` a rollout is one step, so one row.
-- `acted`: the rollout made a call there that could be trained on; where it had ended by then, it stands with the return of
-- its last step, so that late steps of long rollouts are compared with how short ones ended, not with nothing.
-- Inputs: call_returns.
WITH acted AS (
    SELECT DISTINCT policy, group_id, agent, step, rollout_id, attempt_id, reward, return
    FROM call_returns
    WHERE left_out IS NULL
),
last_steps AS (
    SELECT policy, group_id, agent, rollout_id, attempt_id, reward, max(step) AS step, max_by(return, step) AS return
    FROM acted
    GROUP BY ALL
),
ended AS (
    SELECT *, max(step) OVER (PARTITION BY policy, group_id, agent) AS steps FROM last_steps
)
SELECT policy, group_id, agent, step, rollout_id, attempt_id, reward, return, true AS acted FROM acted
UNION ALL
SELECT policy, group_id, agent, unnest(range(step + 1, steps + 1)), rollout_id, attempt_id, reward, return, false FROM ended
ORDER BY policy, group_id, agent, step, rollout_id
