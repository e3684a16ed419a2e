-- Every reward as the agent or the grader emitted it; `rollout_rewards` has the resulting reward of each rollout.
-- Grain: one row per span that carries a reward, or is one. Inputs: spans, attempts, span_places.
-- Rule: `agent` is the agent that emitted it; NULL for a grader's. `words` is the giver's reason for it; `error` says why a grader gave none.
SELECT
    attempts.run,
    attempts.epoch,
    attempts.mode,
    rewards.rollout_id,
    rewards.attempt_id,
    rewards.trace_id,
    rewards.span_id,
    CASE WHEN rewards.reward_source IS DISTINCT FROM 'grader' THEN coalesce(places.agent, rewards.agent_name) END AS agent,
    rewards.reward_name,
    rewards.reward,
    coalesce(rewards.reward_source, 'agent') AS source,
    rewards.attributes['lightning.reward.words'] AS words,
    rewards.error,
    make_timestamp_ns(coalesce(rewards.end_ns, rewards.start_ns)) AS emitted
FROM spans AS rewards
LEFT JOIN attempts USING (rollout_id, attempt_id)
LEFT JOIN span_places AS places
    ON places.rollout_id = rewards.rollout_id
    AND places.attempt_id = rewards.attempt_id
    AND places.trace_id = rewards.trace_id
    AND places.span_id = rewards.span_id
WHERE rewards.op = 'reward' OR rewards.reward IS NOT NULL
