-- Every reward as it was emitted, by the agent or by the grader; `rollout_rewards` has the rollout's resulting reward.
-- Grain: one row per span that carries a reward, or is one. Inputs: spans, attempts, span_places.
-- Rule: `agent` is the agent that emitted it; NULL for a grader's. `words` say why it is what it is, as who gave it wrote; `error` why a grader gave none.
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
