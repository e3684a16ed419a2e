-- The rollouts of a batch, as a reflecting model reads them: the task, what the agent's calls said, the rewards and the reasons for them.
-- Grain: one row per rollout that counts. Inputs: rollouts, calls, rewards.
-- Parameters: run, epoch; prompts and patterns: the prompts and, in the same order, a regex (RE2) on the agents of each ('': all calls).
-- Rule: `said` has every call once, in the order in which they began, with its agent and the prompts of that agent. `rewards` has each reward with its
-- words, or the error of a grader that gave none.
WITH said AS (
    SELECT
        rollout_id,
        attempt_id,
        list(
            struct_pack(
                agent := agent,
                path := agent_path,
                asked := input_messages,
                answered := output_messages,
                error := error,
                prompts := [
                    one[1] FOR one IN list_zip($prompts::VARCHAR[], $patterns::VARCHAR[])
                    IF one[2] = '' OR coalesce(regexp_matches(agent, one[2]), false)
                ]
            )
            ORDER BY started, span_id
        ) AS said
    FROM calls
    WHERE run = $run AND epoch = $epoch AND mode = 'evaluate' AND twin_of IS NULL
    GROUP BY rollout_id, attempt_id
),
given AS (
    SELECT
        rollout_id,
        attempt_id,
        string_agg(
            concat(reward_name, ': ', coalesce(round(reward, 4)::VARCHAR, 'none'), ', ' || coalesce(words, error)), '; ' ORDER BY emitted, span_id
        ) AS rewards
    FROM rewards
    WHERE run = $run AND epoch = $epoch AND mode = 'evaluate'
    GROUP BY rollout_id, attempt_id
)
SELECT
    rollouts.rollout_id,
    rollouts.task_text,
    rollouts.task,
    rollouts.output,
    rollouts.outcome,
    rollouts.error,
    rollouts.reward,
    rollouts.success,
    given.rewards,
    coalesce(said.said, []) AS said
FROM rollouts
LEFT JOIN said USING (rollout_id, attempt_id)
LEFT JOIN given USING (rollout_id, attempt_id)
WHERE rollouts.run = $run AND rollouts.epoch = $epoch AND rollouts.mode = 'evaluate' AND rollouts.state = 'counts'
ORDER BY rollouts.rollout_id
