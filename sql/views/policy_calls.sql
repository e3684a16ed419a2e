-- Every LLM call of the training rollouts that count, its agent, and whether it trains a policy.
-- Grain: one row per call_id (a call that was recorded twice is one). Inputs: stored.policy_calls, stored.span_tree, stored.candidate_agents.
-- Rule: `left_out` is NULL if the call could be trained on; view triplets has what became of it. `ambiguous`: several agents could have made it.
-- `candidates` is the number of known ones, `candidate_agents` their names; an agent whose span was lost is not among them.
SELECT
    calls.run,
    calls.epoch,
    call_id_of(calls.run, calls.epoch, calls.call_id) AS call_id,
    calls.rollout_id,
    calls.attempt_id,
    calls.group_id,
    calls.span_id,
    calls.response_id,
    make_timestamp_ns(calls.start_ns) AS started,
    make_timestamp_ns(calls.end_ns) AS ended,
    calls.agent,
    calls.agent_path,
    calls.method,
    tree.ambiguous,
    candidates.agents AS candidate_agents,
    CASE WHEN tree.ambiguous THEN coalesce(len(candidates.agents), 0) END AS candidates,
    calls.policy,
    calls.policy_version,
    calls.prompt_tokens,
    calls.response_tokens,
    calls.other_sampling,
    calls.left_out
FROM stored.policy_calls AS calls
LEFT JOIN stored.span_tree AS tree
    ON tree.run = calls.run
    AND tree.epoch = calls.epoch
    AND tree.node = calls.call_id
    AND tree.rollout_id = calls.rollout_id
LEFT JOIN (
    SELECT run, epoch, rollout_id, call_id, list(agent ORDER BY agent) AS agents
    FROM stored.candidate_agents
    WHERE agent <> ''
    GROUP BY run, epoch, rollout_id, call_id
) AS candidates
    ON candidates.run = calls.run
    AND candidates.epoch = calls.epoch
    AND candidates.call_id = calls.call_id
    AND candidates.rollout_id = calls.rollout_id
