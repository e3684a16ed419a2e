-- The agent whose time holds each waiting span.
-- Grain: one row per waiting span that lies in the time of at least one agent. `method`: `time` (one agent holds it, or one inside the
-- others), `same_name` (several of one name inside one agent: the name is certain, the agent's span is not), `ambiguous`.
-- Inputs: waiting, agent_times, agent_spans.
-- Rule: an agent holds what begins in its time. Clocks differ: if an agent opens within 50 ms after the span, it may hold the span too; if no
-- agent was open, it does. The same applies to an agent that closed within 50 ms before a span that is shorter than that. Of nested agents
-- the inner one has the span, unless the outer one is known to work at the same time (`agent_times.contested`), or the span outlives the
-- inner one.
-- No pairs of spans and agents are made. The times that were open are those that opened before, less those that closed before. Each time
-- carries its own id less that of the time around it, so the sum over a chain of nested times is the id of the innermost; it is a chain if
-- the time with that id is as deep as the number of open times. Likewise the sum of `kin` tells whether all but a chain are siblings of one
-- name.
WITH asked AS MATERIALIZED (
    SELECT node, attempt, level, start_ns, coalesce(end_ns, start_ns) AS end_ns
    FROM waiting
    JOIN (SELECT DISTINCT attempt, level FROM agent_times WHERE level > 0) AS levels USING (attempt)
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
near AS MATERIALIZED (
    SELECT asked.*, opened AS begun, closed AS over
    FROM asked
    ASOF JOIN opened
        ON opened.attempt = asked.attempt
        AND opened.level = asked.level
        AND opened.start_ns <= asked.start_ns + clock_tolerance_ns()
    ASOF LEFT JOIN closed ON closed.attempt = asked.attempt AND closed.level = asked.level AND closed.end_ns < asked.start_ns
),
tiers AS MATERIALIZED (
    SELECT
        * EXCLUDE (begun, over),
        begun.start_ns > start_ns AS more_soon,
        (begun.n - coalesce(over.n, 0))::BIGINT AS n,
        (begun.w - coalesce(over.w, 0))::BIGINT AS w,
        begun.k - coalesce(over.k, 0) AS k,
        (begun.innermost - coalesce(over.innermost, 0))::BIGINT AS innermost
    FROM (
        SELECT *, start_ns AS y FROM near WHERE begun.n > coalesce(over.n, 0)
        UNION ALL BY NAME
        SELECT near.* REPLACE (closed AS over), near.start_ns - clock_tolerance_ns() AS y
        FROM near
        ASOF LEFT JOIN closed
            ON closed.attempt = near.attempt AND closed.level = near.level AND closed.end_ns < near.start_ns - clock_tolerance_ns()
        WHERE near.begun.n = near.over.n AND near.end_ns - near.start_ns < clock_tolerance_ns()
    )
    WHERE begun.n > coalesce(over.n, 0)
),
open_soon AS (
    -- Some were open, and more opened within the 50 ms after.
    SELECT tiers.node
    FROM tiers
    ASOF JOIN opened ON opened.attempt = tiers.attempt AND opened.level = tiers.level AND opened.start_ns <= tiers.start_ns
    ASOF LEFT JOIN closed ON closed.attempt = tiers.attempt AND closed.level = tiers.level AND closed.end_ns < tiers.start_ns
    WHERE tiers.level = 1 AND tiers.more_soon AND opened.n > coalesce(closed.n, 0)
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
        AND times.start_ns <= tiers.start_ns + clock_tolerance_ns()
        AND times.end_ns >= tiers.y
),
certain AS (
    -- Of a chain the innermost, if nothing speaks for those around it.
    SELECT chains.node, chains.id
    FROM chains
    ANTI JOIN open_soon ON open_soon.node = chains.node
    WHERE chains.level = 1 AND NOT chains.contested AND NOT (chains.outlives AND chains.depth > 1)
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
