-- How far the gateway's clock is ahead of the agents' clocks, as far as an attempt shows it.
-- Grain: one row per attempt that needs it: some of its calls of a policy declare no parent. `ahead_ns` is the shift nearest to 0 that
-- fits; 0 if equal clocks fit or nothing can be told. `low_ns` and `high_ns` are its bounds, NULL if there is none.
-- Inputs: nodes, orphans, llm_twins, declared, spans.
-- Rule: three facts bound the shift.
-- 1. The gateway's record of a call lies inside what the agent's process recorded of it: its other record, or the client's span that
--    it declares as parent.
-- 2. Without such pairs, all calls lie between the start of the first agent and the end of the last, if they fit there, and the clocks
--    differ by at most 2 s.
-- 3. The gateway receives no span before it ends. For each process the shortest such delay counts; of several processes (by their
--    resources) the longest of these, since one may have a clock of its own. If this contradicts the other facts, or is more than
--    2 s off, it is ignored.
-- `unknown`: no shift puts all calls between those agents, and some calls begin outside (50 ms are tolerated). Then either an agent's span
-- was lost or the clock is off, and it is not known which.
WITH asked AS MATERIALIZED (
    SELECT DISTINCT nodes.attempt
    FROM orphans
    JOIN nodes USING (node)
    WHERE nodes.policy IS NOT NULL AND orphans.op = 'llm'
),
calls AS MATERIALIZED (
    SELECT nodes.node, nodes.attempt, nodes.start_ns, nodes.end_ns
    FROM nodes
    SEMI JOIN asked USING (attempt)
    WHERE nodes.policy IS NOT NULL AND nodes.op = 'llm' AND nodes.start_ns IS NOT NULL AND nodes.end_ns IS NOT NULL
),
pairs AS (
    SELECT calls.attempt, max(calls.end_ns - client.end_ns) AS low_ns, min(calls.start_ns - client.start_ns) AS high_ns
    FROM calls
    JOIN (
        SELECT kept AS node, node AS client FROM llm_twins
        UNION ALL
        SELECT node, parent FROM declared
    ) AS pairs USING (node)
    JOIN nodes AS client ON client.node = pairs.client
    WHERE client.policy IS NULL AND client.op IN ('llm', 'other')
    GROUP BY calls.attempt
),
agents AS (
    SELECT nodes.attempt, min(nodes.start_ns) AS start_ns, max(nodes.end_ns) AS end_ns
    FROM nodes
    SEMI JOIN asked USING (attempt)
    WHERE nodes.agent_name IS NOT NULL AND nodes.op NOT IN ('llm', 'tool')
    GROUP BY nodes.attempt
    HAVING count(*) = count(nodes.start_ns) AND count(*) = count(nodes.end_ns)
),
sent AS (
    SELECT attempt, max(high_ns) AS high_ns
    FROM (
        SELECT nodes.attempt, min(spans.received_ns - nodes.end_ns) AS high_ns
        FROM nodes
        SEMI JOIN asked USING (attempt)
        JOIN spans USING (record_offset, record_index)
        WHERE nodes.policy IS NULL AND nodes.op NOT IN ('rollout', 'reward')
        GROUP BY nodes.attempt, spans.resource
    )
    GROUP BY attempt
    HAVING max(high_ns) > -2_000_000_000
),
hulls AS (
    SELECT
        calls.attempt,
        max(calls.end_ns) - any_value(agents.end_ns) AS low_ns,
        min(calls.start_ns) - any_value(agents.start_ns) AS high_ns,
        greatest(-high_ns, max(calls.start_ns) - any_value(agents.end_ns)) > clock_tolerance_ns() AS outside
    FROM calls
    JOIN agents USING (attempt)
    GROUP BY calls.attempt
),
bounds AS (
    SELECT
        asked.attempt,
        coalesce(pairs.low_ns, hulls.low_ns) AS low_ns,
        least(
            coalesce(pairs.high_ns, hulls.high_ns),
            CASE WHEN coalesce(sent.high_ns >= coalesce(pairs.low_ns, hulls.low_ns), true) THEN sent.high_ns END
        ) AS high_ns,
        coalesce(held.outside, false) AND pairs.low_ns IS NULL AND hulls.low_ns IS NULL AS unknown
    FROM asked
    LEFT JOIN (FROM pairs WHERE low_ns <= high_ns) AS pairs USING (attempt)
    LEFT JOIN (FROM hulls WHERE low_ns <= high_ns AND low_ns < 2_000_000_000 AND high_ns > -2_000_000_000) AS hulls USING (attempt)
    LEFT JOIN (SELECT attempt, outside FROM hulls) AS held USING (attempt)
    LEFT JOIN sent USING (attempt)
)
SELECT attempt, CASE WHEN high_ns < 0 THEN high_ns WHEN low_ns > 0 THEN low_ns ELSE 0 END AS ahead_ns, low_ns, high_ns, unknown
FROM bounds
