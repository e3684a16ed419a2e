-- Executions of one rollout, and its reward where one counts.
-- Grain: one row per attempt. Parameters: rollout_id; run, epoch (NULL: any). Inputs: scored_attempts, rollout_rewards
SELECT
    attempts.run,
    attempts.epoch,
    attempts.mode,
    attempts.attempt_id,
    attempts.group_id,
    attempts.task_id,
    attempts.outcome,
    attempts.error,
    attempts.counts,
    attempts.left_out,
    (epoch_ns(attempts.ended) - epoch_ns(attempts.started)) / 1e9 AS seconds,
    rewards.reward,
    rewards.air,
    rewards.source,
    rewards.left_out AS no_reward
FROM scored_attempts AS attempts
LEFT JOIN rollout_rewards AS rewards USING (run, epoch, mode, rollout_id, attempt_id)
WHERE attempts.rollout_id = $rollout_id
    AND ($run IS NULL OR attempts.run = $run)
    AND ($epoch IS NULL OR attempts.epoch = $epoch)
ORDER BY attempts.epoch DESC, attempts.run, attempts.counts DESC, attempts.attempt_id
