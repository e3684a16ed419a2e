-- What the estimators compare: the return of every rollout at every step.
-- Grain: one row per (policy, group, agent, step, rollout). With `assign: final` a rollout is one step, so one row.
-- Inputs: call_returns, reward_settings.
-- Rule: `acted`: the rollout made a call at this step that could be trained on. With `assign: discounted` a rollout that had ended by then is
-- represented by the return of its last step, so that late steps of long rollouts are compared with how short ones ended. With `nearest` it is
-- not: the reward of its last call alone says nothing of steps that it did not take.
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
SELECT policy, group_id, agent, unnest(range(step + 1, steps + 1)), rollout_id, attempt_id, reward, return, false
FROM ended
SEMI JOIN reward_settings ON assign = 'discounted'
ORDER BY policy, group_id, agent, step, rollout_id
