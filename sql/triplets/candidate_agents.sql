-- The agents that could have made a call whose agent is ambiguous.
-- Grain: one row per (call of a policy, agent name). `agent` is '' for an unknown agent: a span was lost, or no other agent has the prompt.
-- Inputs: bucket, nodes, span_agents, components, placements, root_calls, evidence, enclosing_agent, evident_agent, waiting, calls_at_once,
-- agent_times, agent_spans, lossy_attempts.
-- Rule: the call itself is ambiguous, or something above it: from the call upwards, the first tree that several agents hold counts. Candidates
-- are the agents that were open when that tree began (as in `enclosing_agent`), without those around another candidate: of nested agents the
-- inner one has the span, unless the outer one works at the same time, the span outlives the inner one, or it is one of two calls at once.
WITH RECURSIVE
unclear AS MATERIALIZED (
    -- As a rule none: then nothing more is looked at.
    SELECT placements.node AS top, above.top AS onto
    FROM placements
    JOIN components AS above ON above.node = placements.parent
    WHERE placements.ambiguous
),
doubtful AS MATERIALIZED (
    SELECT unclear.top, evident_agent.node AS held
    FROM unclear
    LEFT JOIN evidence ON evidence.node = unclear.top
    JOIN evident_agent ON evident_agent.node = coalesce(evidence.beside, unclear.top)
    WHERE evident_agent.method = 'ambiguous'
),
asked AS MATERIALIZED (
    SELECT nodes.node AS call_id, components.top
    FROM (
        SELECT components.node FROM components SEMI JOIN unclear USING (top)
        UNION
        SELECT node FROM root_calls WHERE method = 'ambiguous'
    ) AS found
    JOIN nodes USING (node)
    JOIN span_agents USING (node)
    JOIN components USING (node)
    WHERE span_agents.ambiguous AND nodes.op = 'llm' AND nodes.policy IS NOT NULL
),
climbed AS (
    FROM asked
    UNION
    SELECT climbed.call_id, unclear.onto
    FROM climbed
    JOIN unclear USING (top)
    ANTI JOIN doubtful USING (top)
),
spans_held AS MATERIALIZED (
    SELECT
        held.call_id,
        waiting.node,
        waiting.attempt,
        waiting.start_ns,
        coalesce(waiting.end_ns, waiting.start_ns) AS end_ns
    FROM (
        SELECT climbed.call_id, doubtful.held FROM climbed JOIN doubtful USING (top)
        UNION
        -- Right under a root.
        SELECT asked.call_id, asked.call_id FROM asked
    ) AS held
    JOIN waiting ON waiting.node = held.held
),
holding AS (
    -- Tier 1: open when it began, or within the 50 ms after; where none was, tier 2: within those before.
    SELECT
        spans_held.call_id,
        times.id,
        times.up,
        times.start_ns <= spans_held.start_ns
            AND NOT times.contested
            AND calls_at_once.node IS NULL
            AND spans_held.end_ns - clock_tolerance_ns() <= times.end_ns AS has_it,
        CASE WHEN times.end_ns >= spans_held.start_ns THEN 1 ELSE 2 END AS tier
    FROM spans_held
    LEFT JOIN calls_at_once ON calls_at_once.node = spans_held.node
    JOIN agent_times AS times
        ON times.attempt = spans_held.attempt
        AND times.level = 1
        AND times.start_ns <= spans_held.start_ns + clock_tolerance_ns()
        AND times.end_ns >= spans_held.start_ns - clock_tolerance_ns()
),
nearest AS (
    SELECT * FROM holding QUALIFY tier = min(tier) OVER (PARTITION BY call_id)
),
named AS (
    SELECT nearest.call_id, agent_spans.agent
    FROM nearest
    JOIN agent_spans ON agent_spans.node = nearest.id
    ANTI JOIN nearest AS inner_one ON inner_one.call_id = nearest.call_id AND inner_one.up = nearest.id AND inner_one.has_it
    UNION
    SELECT spans_held.call_id, ''
    FROM spans_held
    LEFT JOIN enclosing_agent ON enclosing_agent.node = spans_held.node
    WHERE enclosing_agent.method IS DISTINCT FROM 'ambiguous' OR spans_held.attempt IN (FROM lossy_attempts)
)
SELECT named.call_id, bucket.rollout_id, bucket.attempt_id, named.agent
FROM named
JOIN nodes ON nodes.node = named.call_id
JOIN bucket USING (attempt)
ORDER BY ALL
