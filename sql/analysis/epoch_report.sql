-- One line an epoch: rewards, held-out success, what was sampled and what of it was trained on.
-- Grain: one row per (run, epoch). `held_out_*` is the evaluation after the epoch; the one before any training is epoch -1.
-- Inputs: rollout_rewards, epoch_manifests, policy_calls, policy_epochs, sequences.
-- Parameters: p_run, p_epoch (default: all).
-- Rule: `reward_uniform` is what `mean_reward` would be if all tasks were drawn alike (`tasks.sampler`): each rollout is divided by
-- the weight of its task in the draw; NULL if all were. `calls` and their tokens are those of the run's policies; `trained_calls` of
-- them were trained on.
WITH training AS (
    SELECT
        rewards.run,
        rewards.epoch,
        avg(reward) AS mean_reward,
        uniform_mean(reward, manifests.weights[task_id]) AS reward_uniform,
        count(*) AS rollouts,
        count(*) FILTER (WHERE outcome <> 'ok') AS failed_rollouts
    FROM rollout_rewards AS rewards
    LEFT JOIN epoch_manifests AS manifests USING (run, epoch, mode)
    WHERE mode = 'train'
    GROUP BY ALL
),
held_out AS (
    SELECT
        run,
        epoch - 1 AS epoch,
        count(DISTINCT group_id) AS held_out_tasks,
        avg(success::INTEGER) AS held_out_right,
        avg(reward) AS held_out_reward
    FROM rollout_rewards
    WHERE mode = 'evaluate'
    GROUP BY run, epoch
),
policies AS (
    SELECT run, epoch, sum(calls)::BIGINT AS calls, sum(trained_calls)::BIGINT AS trained_calls, sum(sequences)::BIGINT AS sequences
    FROM policy_epochs
    GROUP BY run, epoch
),
tokens AS (
    SELECT
        run,
        epoch,
        sum(prompt_tokens)::BIGINT AS prompt_tokens,
        sum(response_tokens)::BIGINT AS response_tokens
    FROM policy_calls
    SEMI JOIN policy_epochs USING (run, epoch, policy)
    GROUP BY run, epoch
),
lengths AS (
    SELECT run, epoch, sum(len(token_ids))::BIGINT AS sequence_tokens FROM sequences GROUP BY run, epoch
)
SELECT
    coalesce(training.run, held_out.run) AS run,
    coalesce(training.epoch, held_out.epoch) AS epoch,
    mean_reward,
    reward_uniform,
    held_out_right,
    held_out_reward,
    held_out_tasks,
    rollouts,
    failed_rollouts,
    calls,
    trained_calls,
    sequences,
    prompt_tokens,
    response_tokens,
    CASE WHEN rollouts IS NOT NULL THEN coalesce(sequence_tokens, 0) END AS sequence_tokens
FROM training
FULL JOIN held_out USING (run, epoch)
LEFT JOIN policies ON policies.run = training.run AND policies.epoch = training.epoch
LEFT JOIN tokens ON tokens.run = training.run AND tokens.epoch = training.epoch
LEFT JOIN lengths ON lengths.run = training.run AND lengths.epoch = training.epoch
WHERE (p_run IS NULL OR run = p_run) AND (p_epoch IS NULL OR epoch = p_epoch)
ORDER BY run, epoch
