-- What pushes the weights: for each rollout and agent how many tokens train, and how strongly.
-- Grain: one row per (epoch, policy, agent, rollout_id) with a call of a policy. Parameters: run. Inputs: triplets, rollouts.
-- Rule: `push` is the sum of the advantage over the tokens that are trained on: their weight in the gradient before any clipping.
SELECT
    triplets.epoch,
    triplets.policy,
    triplets.agent,
    rollouts.task_id,
    triplets.group_id,
    triplets.rollout_id,
    any_value(triplets.reward) AS reward,
    coalesce(sum(len(triplets.response_ids)) FILTER (triplets.left_out IS NULL), 0)::BIGINT AS tokens,
    coalesce(sum(triplets.advantage * len(triplets.response_ids)) FILTER (triplets.left_out IS NULL), 0)::DOUBLE AS push
FROM triplets
LEFT JOIN (FROM rollouts WHERE mode = 'train') AS rollouts
    ON rollouts.run = triplets.run AND rollouts.epoch = triplets.epoch AND rollouts.rollout_id = triplets.rollout_id
WHERE triplets.run = $run
GROUP BY ALL
ORDER BY ALL
