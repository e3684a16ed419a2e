-- The agents that could have made a call of which time does not say whose it is.
-- Grain: one row per (call, agent name), of ambiguous calls that somebody asks about: where a policy trains those and
-- chooses agents; where it drops them, and an agent of the attempt was given rewards for its calls (`reward_steps`).
-- Inputs: rewards_given, policy_rewards, bucket, reward_settings, nodes, span_agents, components, placements, evidence, enclosing_agent, waiting, agent_times, agent_spans, policies.
-- Rule: what is ambiguous is the call, or what it lies under: from the call upwards to the first tree that several agents
-- hold. Candidates are the agents whose time holds that (as `enclosing_agent` counts them), without those around another of them:
-- of nested agents the inner one has the span.
WITH RECURSIVE
doubtful AS MATERIALIZED (
    SELECT placements.node AS top, enclosing_agent.node AS held
    FROM placements
    LEFT JOIN evidence ON evidence.node = placements.node
    JOIN enclosing_agent ON enclosing_agent.node = coalesce(evidence.beside, placements.node)
    WHERE enclosing_agent.method = 'ambiguous'
),
rewarded AS (
    -- By the run's names, or those that a policy has of its own.
    SELECT DISTINCT bucket.attempt
    FROM (
        SELECT rollout_id, attempt_id FROM rewards_given WHERE left_out IS NULL AND agent IS NOT NULL
        UNION
        SELECT rollout_id, attempt_id FROM policy_rewards WHERE agent IS NOT NULL
    )
    JOIN bucket USING (rollout_id, attempt_id)
    SEMI JOIN reward_settings ON assign <> 'final'
),
asked AS MATERIALIZED (
    SELECT nodes.node AS call_id, components.top
    FROM nodes
    JOIN span_agents USING (node)
    JOIN components USING (node)
    JOIN policies ON policies.policy = nodes.policy
    WHERE span_agents.ambiguous
        AND nodes.op = 'llm'
        AND CASE policies.ambiguous
            WHEN 'train' THEN policies.agent_match <> '' OR policies.agent_exclude IS NOT NULL
            ELSE nodes.attempt IN (SELECT attempt FROM rewarded)
        END
),
climbed AS (
    FROM asked
    UNION
    SELECT climbed.call_id, above.top
    FROM climbed
    JOIN placements ON placements.node = climbed.top
    JOIN components AS above ON above.node = placements.parent
    ANTI JOIN doubtful ON doubtful.top = climbed.top
),
spans_held AS (
    SELECT
        climbed.call_id,
        waiting.attempt,
        waiting.start_ns,
        coalesce(waiting.end_ns, waiting.start_ns) AS end_ns
    FROM climbed
    JOIN doubtful USING (top)
    JOIN waiting ON waiting.node = doubtful.held
),
holding AS (
    -- Tier 1: in an agent's time, give or take 50 ms; where no agent's, tier 2: within 50 ms of it.
    SELECT
        spans_held.call_id,
        times.id,
        times.up,
        CASE
            WHEN times.start_ns <= least(spans_held.end_ns, spans_held.start_ns + 50_000_000)
                AND times.end_ns >= greatest(spans_held.start_ns, spans_held.end_ns - 50_000_000) THEN 1
            ELSE 2
        END AS tier
    FROM spans_held
    JOIN agent_times AS times
        ON times.attempt = spans_held.attempt
        AND times.level = 1
        AND times.start_ns <= spans_held.start_ns + 50_000_000
        AND times.end_ns >= spans_held.end_ns - 50_000_000
),
nearest AS (
    SELECT * FROM holding QUALIFY tier = min(tier) OVER (PARTITION BY call_id)
)
SELECT DISTINCT nearest.call_id, agent_spans.agent
FROM nearest
JOIN agent_spans ON agent_spans.node = nearest.id
ANTI JOIN nearest AS inner_one ON inner_one.call_id = nearest.call_id AND inner_one.up = nearest.id
ORDER BY ALL
