-- The rewards of one attempt: who gave them, whether they count, and which calls they went to.
-- Grain: one row per reward; `calls` is empty with `assign: final`; `policies` are the policies with rewards of their own that count it, with its
-- worth to each. Parameters: run, epoch, rollout_id, attempt_id.
-- Inputs: rewards_given, policy_rewards, reward_steps
WITH went AS (
    SELECT
        node,
        reward_name,
        source,
        list({'policy': policy, 'agent': agent, 'call_id': call_id, 'left_out': left_out} ORDER BY policy, agent) AS calls
    FROM reward_steps
    WHERE run = $run AND epoch = $epoch AND rollout_id = $rollout_id AND attempt_id = $attempt_id
    GROUP BY ALL
),
own AS (
    SELECT node, reward_name, source, list({'policy': policy, 'weight': weight, 'counts': counts} ORDER BY policy) AS policies
    FROM policy_rewards
    WHERE run = $run AND epoch = $epoch AND rollout_id = $rollout_id AND attempt_id = $attempt_id
    GROUP BY ALL
)
SELECT
    given.span_id,
    given.reward_name,
    given.source,
    given.agent,
    given.ambiguous,
    given.reward,
    given.weight,
    given.counts,
    given.left_out,
    coalesce(own.policies, []) AS policies,
    coalesce(went.calls, []) AS calls
FROM rewards_given AS given
LEFT JOIN went ON went.node = given.node AND went.reward_name = given.reward_name AND went.source = given.source
LEFT JOIN own ON own.node = given.node AND own.reward_name = given.reward_name AND own.source = given.source
WHERE given.run = $run AND given.epoch = $epoch AND given.rollout_id = $rollout_id AND given.attempt_id = $attempt_id
ORDER BY given.emitted, given.node, given.reward_name
