-- One line an epoch: rewards, held-out success, what was collected and what of it trains.
-- Grain: one row per (run, epoch). `held_out_*` is the evaluation after the epoch.
-- Inputs: rollout_rewards, policy_calls, sequences
-- Parameters: p_run, p_epoch (default: all).
WITH training AS (
    SELECT
        run,
        epoch,
        avg(reward) AS mean_reward,
        count(*) AS rollouts,
        count(*) FILTER (WHERE outcome <> 'ok') AS failed_rollouts
    FROM rollout_rewards
    WHERE mode = 'train'
    GROUP BY run, epoch
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
calls AS (
    SELECT
        run,
        epoch,
        count(*) AS calls,
        count(*) FILTER (WHERE left_out IS NULL) AS trainable_calls,
        sum(prompt_tokens)::BIGINT AS prompt_tokens,
        sum(response_tokens)::BIGINT AS response_tokens
    FROM policy_calls
    GROUP BY run, epoch
),
trained AS (
    SELECT run, epoch, count(*) AS sequences, sum(len(token_ids))::BIGINT AS sequence_tokens
    FROM sequences
    GROUP BY run, epoch
)
SELECT
    coalesce(training.run, held_out.run) AS run,
    coalesce(training.epoch, held_out.epoch) AS epoch,
    mean_reward,
    held_out_right,
    held_out_reward,
    held_out_tasks,
    rollouts,
    failed_rollouts,
    calls,
    trainable_calls,
    coalesce(sequences, CASE WHEN rollouts IS NOT NULL THEN 0 END) AS sequences,
    prompt_tokens,
    response_tokens,
    coalesce(sequence_tokens, CASE WHEN rollouts IS NOT NULL THEN 0 END) AS sequence_tokens
FROM training
FULL JOIN held_out USING (run, epoch)
LEFT JOIN calls ON calls.run = training.run AND calls.epoch = training.epoch
LEFT JOIN trained ON trained.run = training.run AND trained.epoch = training.epoch
WHERE (p_run IS NULL OR run = p_run) AND (p_epoch IS NULL OR epoch = p_epoch)
ORDER BY run, epoch
