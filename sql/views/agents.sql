-- Which agents ran, what they did, and which policies their calls train.
-- Grain: one row per (run, epoch, mode, agent, agent_path) of a derived epoch.
-- Inputs: stored.span_tree, stored.scored_attempts, spans, stored.policy_calls, trained_calls.
-- Rule: only attempts that count; a call that was recorded twice is one. `policies` sampled its calls; `matched` are those of them whose
-- agent_match and agent_exclude select one of its calls. `ambiguous_calls` may be another agent's. `trained_calls` are those that a version was
-- trained on; `left_out_calls` have a reason of their own not to be (all reasons: exclusion_reasons). Evaluations train nothing and have no such
-- numbers.
WITH facts AS (
    SELECT
        rollout_id,
        attempt_id,
        trace_id,
        span_id,
        bool_or(status = 'error') AS failed,
        max(input_tokens) AS prompt_tokens,
        max(output_tokens) AS response_tokens
    FROM spans
    WHERE op = 'llm' OR status = 'error'
    GROUP BY rollout_id, attempt_id, trace_id, span_id
),
present AS (
    SELECT
        tree.run,
        tree.epoch,
        scored.mode,
        tree.agent,
        tree.agent_path,
        count(DISTINCT tree.rollout_id) AS rollouts,
        count(*) FILTER (tree.op = 'llm') AS calls,
        count(*) FILTER (tree.op = 'tool') AS tool_calls,
        count(*) FILTER (facts.failed) AS errors,
        count(*) FILTER (tree.op = 'llm' AND tree.ambiguous) AS ambiguous_calls,
        coalesce(sum(facts.prompt_tokens) FILTER (tree.op = 'llm'), 0)::BIGINT AS prompt_tokens,
        coalesce(sum(facts.response_tokens) FILTER (tree.op = 'llm'), 0)::BIGINT AS response_tokens
    FROM stored.span_tree AS tree
    JOIN stored.scored_attempts AS scored ON scored.rollout_id = tree.rollout_id AND scored.attempt_id = tree.attempt_id
    LEFT JOIN facts
        ON facts.rollout_id = tree.rollout_id
        AND facts.attempt_id = tree.attempt_id
        AND facts.trace_id = tree.trace_id
        AND facts.span_id = tree.span_id
    WHERE tree.twin_of IS NULL AND tree.op NOT IN ('rollout', 'rollout.start', 'missing')
    GROUP BY ALL
    HAVING tree.agent IS NOT NULL OR calls > 0 OR tool_calls > 0 OR errors > 0
),
trained AS (
    SELECT
        calls.run,
        calls.epoch,
        calls.agent,
        calls.agent_path,
        coalesce(list_sort(list(DISTINCT calls.policy) FILTER (calls.policy IS NOT NULL)), []) AS policies,
        -- These are judged after agent_match: what else leaves a call out says nothing of it.
        coalesce(
            list_sort(list(DISTINCT calls.policy) FILTER (left_out IS NULL OR left_out IN ('not_scheduled', 'failed_attempt', 'no_reward'))), []
        ) AS matched,
        count(trained_calls.call_id) AS trained_calls,
        count(*) FILTER (left_out IS NOT NULL) AS left_out_calls
    FROM stored.policy_calls AS calls
    LEFT JOIN trained_calls ON trained_calls.call_id = call_id_of(calls.run, calls.epoch, calls.call_id)
    GROUP BY ALL
)
SELECT
    present.run,
    present.epoch,
    present.mode,
    present.agent,
    present.agent_path,
    present.rollouts,
    present.calls,
    present.tool_calls,
    present.errors,
    present.ambiguous_calls,
    trained.policies,
    trained.matched,
    trained.trained_calls,
    trained.left_out_calls,
    present.prompt_tokens,
    present.response_tokens
FROM present
LEFT JOIN trained
    ON present.mode = 'train'
    AND trained.run = present.run
    AND trained.epoch = present.epoch
    AND trained.agent IS NOT DISTINCT FROM present.agent
    AND trained.agent_path IS NOT DISTINCT FROM present.agent_path
ORDER BY present.run, present.epoch, present.mode, present.agent_path, present.agent
