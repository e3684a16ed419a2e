-- The LLM calls of one attempt: their agents, what they were credited with, and why they are trained on or not.
-- Grain: one row per call; `triplets` has an entry for each choice. Parameters: run, epoch, rollout_id, attempt_id.
-- Inputs: policy_calls, scored_attempts, spans, span_tree, methods, call_returns, advantages, call_advantages, merges, exclusions
-- Rule: policy_calls has no calls of evaluations, so those are read from the tree, without columns about training. If each token has an advantage
-- of its own (`by_token`), `advantage` is the mean, and `advantages` of a triplet has all.
WITH called AS (
    SELECT
        run, epoch, rollout_id, attempt_id, call_id, span_id, agent, agent_path, ambiguous, candidates, candidate_agents,
        policy, policy_version, prompt_tokens, response_tokens
    FROM policy_calls
    WHERE run = $run AND epoch = $epoch AND rollout_id = $rollout_id AND attempt_id = $attempt_id
    UNION ALL
    SELECT
        tree.run, tree.epoch, tree.rollout_id, tree.attempt_id, tree.call_id, tree.span_id, tree.agent, tree.agent_path, tree.ambiguous,
        tree.candidates, NULL, spans.policy, spans.policy_version, coalesce(spans.input_tokens, len(spans.prompt_ids)),
        coalesce(spans.output_tokens, len(spans.response_ids))
    FROM scored_attempts AS attempts
    JOIN span_tree AS tree
        ON tree.run = attempts.run
        AND tree.epoch = attempts.epoch
        AND tree.rollout_id = attempts.rollout_id
        AND tree.attempt_id = attempts.attempt_id
    JOIN spans
        ON spans.rollout_id = tree.rollout_id
        AND spans.attempt_id = tree.attempt_id
        AND spans.trace_id = tree.trace_id
        AND spans.span_id = tree.span_id
    WHERE attempts.run = $run
        AND attempts.epoch = $epoch
        AND attempts.rollout_id = $rollout_id
        AND attempts.attempt_id = $attempt_id
        AND attempts.mode = 'evaluate'
        AND spans.rollout_id = $rollout_id
        AND tree.op = 'llm'
        AND tree.twin_node IS NULL
        AND NOT tree.repeated_id
),
excluded AS (
    SELECT call_id, choice, reason
    FROM exclusions
    WHERE run = $run AND epoch = $epoch AND rollout_id = $rollout_id AND attempt_id = $attempt_id
),
merged AS (
    SELECT
        call_id,
        list({
            'choice': choice, 'sequence': sequence_id, 'place': place, 'begins': merges.reason,
            'drift_position': drift_position, 'drift_tokens': drift_tokens, 'left_out': excluded.reason, 'advantages': of_tokens.advantages
        } ORDER BY choice) AS triplets,
        list_avg(flatten(list(of_tokens.advantages ORDER BY choice) FILTER (of_tokens.advantages IS NOT NULL))) AS advantage,
        bool_or(excluded.reason IS NULL) AS trained
    FROM merges
    LEFT JOIN excluded USING (call_id, choice)
    LEFT JOIN (
        SELECT call_id, choice, advantages FROM call_advantages WHERE run = $run AND epoch = $epoch AND rollout_id = $rollout_id
    ) AS of_tokens USING (call_id, choice)
    WHERE run = $run AND epoch = $epoch AND rollout_id = $rollout_id AND attempt_id = $attempt_id
    GROUP BY call_id
),
left_out AS (
    SELECT call_id, min_by(reason, choice) AS reason FROM excluded GROUP BY call_id
)
SELECT
    calls.call_id,
    calls.span_id,
    calls.agent,
    calls.agent_path,
    calls.ambiguous,
    calls.candidates,
    calls.candidate_agents,
    tree.method,
    tree.confidence,
    methods.evidence,
    calls.policy,
    calls.policy_version,
    calls.prompt_tokens,
    calls.response_tokens,
    returns.step,
    returns.reward,
    returns.return,
    advantages.group_rollouts,
    advantages.group_mean,
    advantages.group_std,
    coalesce(merged.advantage, advantages.advantage) AS advantage,
    merged.advantage IS NOT NULL AS by_token,
    merged.triplets,
    CASE WHEN merged.trained IS DISTINCT FROM true THEN left_out.reason END AS left_out
FROM called AS calls
LEFT JOIN span_tree AS tree
    ON tree.run = calls.run
    AND tree.epoch = calls.epoch
    AND tree.rollout_id = calls.rollout_id
    AND tree.call_id = calls.call_id
    AND tree.twin_node IS NULL
LEFT JOIN methods ON methods.method = tree.method
LEFT JOIN call_returns AS returns ON returns.call_id = calls.call_id AND returns.rollout_id = calls.rollout_id
LEFT JOIN advantages
    ON advantages.run = calls.run
    AND advantages.epoch = calls.epoch
    AND advantages.policy = returns.policy
    AND advantages.rollout_id = returns.rollout_id
    AND advantages.attempt_id = returns.attempt_id
    AND advantages.agent IS NOT DISTINCT FROM returns.agent
    AND advantages.step IS NOT DISTINCT FROM returns.step
LEFT JOIN merged ON merged.call_id = calls.call_id
LEFT JOIN left_out ON left_out.call_id = calls.call_id
ORDER BY tree.node
