-- Which agent's time holds each waiting span.
-- Grain: one row per waiting span that at least one agent's time holds. `method`: `time` (one agent holds it, or one
-- inside the others), `same_name` (several of one name inside one agent: the agent is certain, which of its spans is
-- not), `ambiguous`.
-- Inputs: waiting, agent_times, agent_spans.
-- Rule: an agent holds what begins in its time. Clocks differ: an agent that opens within 50 ms after the span may be meant
-- as well; where none was open, it is, and so is one that closed within the 50 ms before a span shorter than that. Of nested
-- agents the inner one has the span, unless the outer one is known to work meanwhile (`agent_times.contested`), or the span
-- outlives the inner one. No pairs are made: the agents' times that were open are those that opened before, less those that
-- closed before. Each carries its own id less that of the one around it, so the sum over a chain of nested ones is the id of
-- the innermost, and a chain it is if the one of that id is as deep as there are. Likewise `kin`: its sum says whether all
-- but a chain are siblings of one name.
WITH asked AS MATERIALIZED (
    SELECT waiting.node, attempt, levels.level, probes.probe, probes.x, probes.y, coalesce(end_ns, start_ns) AS end_ns
    FROM waiting
    JOIN (SELECT DISTINCT attempt, level FROM agent_times WHERE level > 0) AS levels USING (attempt),
    LATERAL (
        SELECT 0 AS probe, start_ns AS x, start_ns AS y
        UNION ALL
        SELECT 1, start_ns + clock_tolerance_ns(), start_ns
        UNION ALL
        SELECT 2, start_ns + clock_tolerance_ns(), start_ns - clock_tolerance_ns()
        WHERE coalesce(end_ns, start_ns) - start_ns < clock_tolerance_ns()
    ) AS probes
),
weights AS MATERIALIZED (
    SELECT
        greatest(level, 1) AS level,
        attempt,
        start_ns,
        end_ns,
        (level > 0)::BIGINT AS n,
        CASE WHEN level > 0 THEN id - coalesce(up, 0) ELSE 0 END AS w,
        CASE WHEN level > 0 THEN kin - coalesce(up_kin, 0) ELSE 0 END AS k,
        CASE level WHEN 0 THEN -1 ELSE 1 END AS innermost
    FROM agent_times
),
opened AS MATERIALIZED (
    SELECT
        attempt,
        level,
        start_ns,
        sum(n) OVER earlier AS n,
        sum(w) OVER earlier AS w,
        sum(k) OVER earlier AS k,
        sum(innermost) OVER earlier AS innermost
    FROM weights
    WINDOW earlier AS (PARTITION BY attempt, level ORDER BY start_ns)
),
closed AS MATERIALIZED (
    SELECT
        attempt,
        level,
        end_ns,
        sum(n) OVER earlier AS n,
        sum(w) OVER earlier AS w,
        sum(k) OVER earlier AS k,
        sum(innermost) OVER earlier AS innermost
    FROM weights
    WINDOW earlier AS (PARTITION BY attempt, level ORDER BY end_ns)
),
totals AS MATERIALIZED (
    SELECT
        asked.*,
        (coalesce(opened.n, 0) - coalesce(closed.n, 0))::BIGINT AS n,
        (coalesce(opened.w, 0) - coalesce(closed.w, 0))::BIGINT AS w,
        coalesce(opened.k, 0) - coalesce(closed.k, 0) AS k,
        (coalesce(opened.innermost, 0) - coalesce(closed.innermost, 0))::BIGINT AS innermost
    FROM asked
    ASOF LEFT JOIN opened ON opened.attempt = asked.attempt AND opened.level = asked.level AND asked.x >= opened.start_ns
    ASOF LEFT JOIN closed ON closed.attempt = asked.attempt AND closed.level = asked.level AND asked.y > closed.end_ns
),
tiers AS MATERIALIZED (
    SELECT totals.*, chosen.opens_soon
    FROM totals
    JOIN (
        SELECT
            node,
            CASE WHEN max(n) FILTER (probe = 1) > 0 THEN 1 ELSE 2 END AS probe,
            max(n) FILTER (probe = 0) > 0 AND max(n) FILTER (probe = 1) > max(n) FILTER (probe = 0) AS opens_soon
        FROM totals
        WHERE level = 1
        GROUP BY node
        HAVING max(n) > 0
    ) AS chosen USING (node, probe)
),
chains AS MATERIALIZED (
    SELECT
        tiers.node,
        tiers.level,
        times.id,
        times.up,
        times.depth,
        times.kin,
        times.up_kin,
        times.contested,
        tiers.end_ns - clock_tolerance_ns() > times.end_ns AS outlives
    FROM tiers
    JOIN agent_times AS times
        ON times.attempt = tiers.attempt
        AND times.level = tiers.level
        AND times.id = tiers.w
        AND times.depth = tiers.n
        AND times.start_ns <= tiers.x
        AND times.end_ns >= tiers.y
),
certain AS (
    -- Of a chain the innermost, if nothing speaks for those around it.
    SELECT chains.node, chains.id
    FROM chains
    JOIN tiers ON tiers.node = chains.node AND tiers.level = 1
    WHERE chains.level = 1 AND NOT tiers.opens_soon AND NOT chains.contested AND NOT (chains.outlives AND chains.depth > 1)
),
same_name AS (
    SELECT chains.node, first_one.up AS parent, chains.depth - 1 AS outer_ones, agent_spans.agent, agent_spans.agent_path
    FROM chains
    JOIN tiers ON tiers.node = chains.node AND tiers.level = 1
    JOIN agent_times AS first_one ON first_one.attempt = tiers.attempt AND first_one.level = 1 AND first_one.id = chains.id
    JOIN agent_spans ON agent_spans.node = chains.id
    WHERE chains.level = 2
        AND NOT chains.contested
        AND NOT (chains.outlives AND chains.depth > 1)
        -- A chain down to the agent around them, and the rest of them are they.
        AND tiers.n > chains.depth
        AND tiers.k = coalesce(chains.up_kin, 0) + (tiers.n - chains.depth + 1) * (chains.kin - coalesce(chains.up_kin, 0))
)
SELECT
    tiers.node,
    CASE
        WHEN certain.node IS NOT NULL THEN 'time'
        WHEN same_name.node IS NOT NULL THEN 'same_name'
        ELSE 'ambiguous'
    END AS method,
    CASE WHEN certain.node IS NOT NULL THEN certain.id ELSE same_name.parent END AS parent,
    CASE WHEN certain.node IS NULL THEN same_name.agent END AS agent,
    CASE WHEN certain.node IS NULL THEN same_name.agent_path END AS agent_path,
    CASE
        WHEN certain.node IS NOT NULL THEN 1
        WHEN same_name.node IS NOT NULL THEN tiers.n - same_name.outer_ones
        ELSE greatest(tiers.innermost, 2)
    END AS candidates
FROM tiers
LEFT JOIN certain ON certain.node = tiers.node
LEFT JOIN same_name ON same_name.node = tiers.node
WHERE tiers.level = 1
