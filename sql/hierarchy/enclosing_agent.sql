-- Which agent's time holds each waiting span.
-- Grain: one row per waiting span that at least one agent's time holds. `method`: `time` (one agent holds it, or one
-- inside the others), `same_name` (several of one name inside one agent: the agent is certain, which of its spans is
-- not), `ambiguous`.
-- Inputs: waiting, agent_times, agent_spans.
-- Rule: an agent holds what lies in its time, give or take 50 ms at either end (clocks differ, streams outlive their
-- callers), and overlaps it; where none does, one that is within 50 ms of it. No pairs are made: the agents' times that
-- hold an interval [x, y] are those that opened by x, less those that closed before y. Each carries its own id less that of
-- the one around it, so the sum over a chain of nested ones is the id of the innermost, and a chain it is if the one of that
-- id is as deep as there are. Likewise `kin`: its sum says whether all but a chain are siblings of one name.
WITH asked AS MATERIALIZED (
    SELECT waiting.node, attempt, levels.level, tolerance.tier, tolerance.x, tolerance.y
    FROM waiting
    JOIN (SELECT DISTINCT attempt, level FROM agent_times WHERE level > 0) AS levels USING (attempt),
    LATERAL (
        SELECT
            1 AS tier,
            least(coalesce(end_ns, start_ns), start_ns + 50_000_000) AS x,
            greatest(start_ns, coalesce(end_ns, start_ns) - 50_000_000) AS y
        UNION ALL
        SELECT 2, start_ns + 50_000_000, coalesce(end_ns, start_ns) - 50_000_000
        WHERE coalesce(end_ns, start_ns) - start_ns < 50_000_000
    ) AS tolerance
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
        CASE level WHEN 0 THEN -1 ELSE 1 END AS innermost,
        row_number() OVER (PARTITION BY attempt, greatest(level, 1) ORDER BY start_ns) AS place
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
        sum(innermost) OVER earlier AS innermost,
        count(*) OVER earlier AS places
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
counted AS MATERIALIZED (
    SELECT
        asked.*,
        coalesce(opened.n, 0) - coalesce(closed.n, 0) AS n,
        coalesce(opened.w, 0) - coalesce(closed.w, 0) AS w,
        coalesce(opened.k, 0) - coalesce(closed.k, 0) AS k,
        coalesce(opened.innermost, 0) - coalesce(closed.innermost, 0) AS innermost,
        coalesce(opened.places, 0) AS places
    FROM asked
    ASOF LEFT JOIN opened ON opened.attempt = asked.attempt AND opened.level = asked.level AND asked.x >= opened.start_ns
    ASOF LEFT JOIN closed ON closed.attempt = asked.attempt AND closed.level = asked.level AND asked.y > closed.end_ns
),
inside AS (
    -- What both opened and closed within the span were subtracted without having been counted.
    SELECT node, level, tier, unnest(range(places + 1, opened_by_y + 1)) AS place, attempt, y
    FROM (
        SELECT counted.*, opened.places AS opened_by_y
        FROM counted
        ASOF JOIN opened ON opened.attempt = counted.attempt AND opened.level = counted.level AND counted.y > opened.start_ns
        WHERE counted.x < counted.y AND opened.places > counted.places
    )
),
added AS (
    SELECT node, inside.level, tier, sum(n) AS n, sum(w) AS w, sum(k) AS k, sum(innermost) AS innermost
    FROM inside
    JOIN weights ON weights.attempt = inside.attempt AND weights.level = inside.level AND weights.place = inside.place
    WHERE weights.end_ns < inside.y
    GROUP BY ALL
),
totals AS (
    SELECT
        counted.node,
        counted.attempt,
        counted.level,
        counted.tier,
        counted.x,
        counted.y,
        (counted.n + coalesce(added.n, 0))::BIGINT AS n,
        (counted.w + coalesce(added.w, 0))::BIGINT AS w,
        counted.k + coalesce(added.k, 0) AS k,
        (counted.innermost + coalesce(added.innermost, 0))::BIGINT AS innermost
    FROM counted
    LEFT JOIN added USING (node, level, tier)
),
tiers AS MATERIALIZED (
    SELECT *
    FROM totals
    SEMI JOIN (
        SELECT node, min(tier) AS tier FROM totals WHERE level = 1 AND n > 0 GROUP BY node
    ) AS first_tier USING (node, tier)
),
chains AS MATERIALIZED (
    SELECT tiers.node, tiers.level, times.id, times.up, times.depth, times.kin, times.up_kin
    FROM tiers
    JOIN agent_times AS times
        ON times.attempt = tiers.attempt
        AND times.level = tiers.level
        AND times.id = tiers.w
        AND times.depth = tiers.n
        AND times.start_ns <= tiers.x
        AND times.end_ns >= tiers.y
),
same_name AS (
    SELECT chains.node, first_one.up AS parent, chains.depth - 1 AS outer_ones, agent_spans.agent, agent_spans.agent_path
    FROM chains
    JOIN tiers ON tiers.node = chains.node AND tiers.level = 1
    JOIN agent_times AS first_one ON first_one.attempt = tiers.attempt AND first_one.level = 1 AND first_one.id = chains.id
    JOIN agent_spans ON agent_spans.node = chains.id
    WHERE chains.level = 2
        -- A chain down to the agent around them, and the rest of them are they.
        AND tiers.n > chains.depth
        AND tiers.k = coalesce(chains.up_kin, 0) + (tiers.n - chains.depth + 1) * (chains.kin - coalesce(chains.up_kin, 0))
)
SELECT
    tiers.node,
    CASE
        WHEN chains.node IS NOT NULL THEN 'time'
        WHEN same_name.node IS NOT NULL THEN 'same_name'
        ELSE 'ambiguous'
    END AS method,
    CASE WHEN chains.node IS NOT NULL THEN chains.id ELSE same_name.parent END AS parent,
    CASE WHEN chains.node IS NULL THEN same_name.agent END AS agent,
    CASE WHEN chains.node IS NULL THEN same_name.agent_path END AS agent_path,
    CASE
        WHEN chains.node IS NOT NULL THEN 1
        WHEN same_name.node IS NOT NULL THEN tiers.n - same_name.outer_ones
        ELSE greatest(tiers.innermost, 2)
    END AS candidates
FROM tiers
LEFT JOIN chains ON chains.node = tiers.node AND chains.level = 1
LEFT JOIN same_name ON same_name.node = tiers.node
WHERE tiers.level = 1
