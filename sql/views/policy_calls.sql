-- Every LLM call of the training rollouts that count, its agent, and whether it trains a policy.
-- Grain: one row per call_id (a call seen twice is one). Inputs: stored.policy_calls, stored.span_tree.
-- Rule: `left_out` is NULL where the call could be trained on; what became of it, triplets says. `ambiguous`: several agents could
-- have made it. `candidates` are as many as are known, `candidate_agents` their names: those whose spans were open when it began (50 ms
-- forgiven), of nested ones the inner ones, unless that leaves one alone. An agent whose span is lost is none of them.
WITH doubtful AS (
    SELECT run, epoch, rollout_id, attempt_id, node, start_ns
    FROM stored.span_tree
    WHERE ambiguous AND op = 'llm' AND twin_of IS NULL
),
open_agents AS (
    SELECT
        doubtful.run,
        doubtful.epoch,
        doubtful.node,
        agents.rollout_id,
        list(DISTINCT {'name': agents.agent, 'path': agents.agent_path}) AS agents
    FROM doubtful
    JOIN stored.span_tree AS agents
        ON agents.run = doubtful.run
        AND agents.epoch = doubtful.epoch
        AND agents.rollout_id = doubtful.rollout_id
        AND agents.attempt_id = doubtful.attempt_id
        AND agents.start_ns <= doubtful.start_ns + clock_tolerance_ns()
        AND coalesce(agents.end_ns, never_ns()) >= doubtful.start_ns - clock_tolerance_ns()
    WHERE agents.agent IS NOT NULL AND agents.op NOT IN ('llm', 'tool', 'reward')
    GROUP BY ALL
),
candidates AS (
    SELECT
        * EXCLUDE (agents),
        list_sort(list_distinct([a.name FOR a IN agents])) AS all_agents,
        list_sort(list_distinct([
            a.name FOR a IN agents IF len([b FOR b IN agents IF starts_with(b.path, a.path || '/')]) = 0
        ])) AS inner_agents
    FROM open_agents
)
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
    CASE WHEN len(candidates.inner_agents) > 1 THEN candidates.inner_agents ELSE candidates.all_agents END AS candidate_agents,
    CASE WHEN tree.ambiguous THEN coalesce(len(candidate_agents), 0) END AS candidates,
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
LEFT JOIN candidates
    ON candidates.run = calls.run
    AND candidates.epoch = calls.epoch
    AND candidates.node = calls.call_id
    AND candidates.rollout_id = calls.rollout_id
