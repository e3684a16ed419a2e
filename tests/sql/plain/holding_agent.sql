-- What sql/hierarchy/holding_agent.sql says, said in pairs: every waiting span with every agent's time that may hold it.
-- Grain, inputs and rule: those of that file. With a hundred agents at once and 3,000 waiting spans a rollout it takes four to ten times
-- as long. Of an ambiguous span that one counts a candidate too few where one agent inside another follows its sibling within the
-- tolerance of clocks.
WITH pairs AS (
    SELECT
        waiting.node,
        times.* EXCLUDE (attempt, start_ns, end_ns),
        times.start_ns <= waiting.start_ns AS begun,
        times.end_ns >= waiting.start_ns AS open,
        coalesce(waiting.end_ns, waiting.start_ns) - clock_tolerance_ns() > times.end_ns AS outlives
    FROM waiting
    JOIN agent_times AS times
        ON times.attempt = waiting.attempt
        AND times.level > 0
        AND times.start_ns <= waiting.start_ns + clock_tolerance_ns()
        AND times.end_ns >= waiting.start_ns - CASE
            WHEN coalesce(waiting.end_ns, waiting.start_ns) - waiting.start_ns < clock_tolerance_ns() THEN clock_tolerance_ns()
            ELSE 0
        END
),
any_open AS (
    -- Where an agent was open, it is one of those; else those that closed just before.
    SELECT node, bool_or(open) AS open FROM pairs GROUP BY node
),
held AS MATERIALIZED (
    SELECT pairs.* FROM pairs JOIN any_open USING (node, open)
),
sets AS MATERIALIZED (
    SELECT
        node,
        level,
        count(*) AS agents,
        count(*) - count(DISTINCT up) AS innermost,
        count_if(begun AND open) BETWEEN 1 AND count(*) - 1 AS opens_soon,
        max(depth) AS depth,
        arg_max({'id': id, 'kin': kin, 'up': up, 'contested': contested, 'outlives': outlives}, depth) AS inner_one
    FROM held
    GROUP BY node, level
),
chains AS (
    -- Each inside the next: as many as the innermost is deep. Nothing speaks for those around it.
    SELECT *
    FROM sets
    WHERE agents = depth AND NOT inner_one.contested AND NOT (inner_one.outlives AND depth > 1)
),
same_name AS (
    -- All but a chain down to the agent around them are of one name.
    SELECT chains.node, chains.depth, chains.inner_one.id AS id
    FROM chains
    JOIN held ON held.node = chains.node AND held.level = 1 AND held.kin = chains.inner_one.kin
    JOIN sets ON sets.node = chains.node AND sets.level = 1
    WHERE chains.level = 2
    GROUP BY chains.node, chains.depth, chains.inner_one, sets.agents
    HAVING count(*) > 1 AND count(*) = sets.agents - chains.depth + 1
)
SELECT
    sets.node,
    CASE WHEN certain.node IS NOT NULL THEN 'time' WHEN same_name.node IS NOT NULL THEN 'same_name' ELSE 'ambiguous' END AS method,
    CASE WHEN certain.node IS NOT NULL THEN certain.inner_one.id ELSE first_one.up END AS parent,
    CASE WHEN certain.node IS NULL THEN agent_spans.agent END AS agent,
    CASE WHEN certain.node IS NULL THEN agent_spans.agent_path END AS agent_path,
    CASE
        WHEN certain.node IS NOT NULL THEN 1
        WHEN same_name.node IS NOT NULL THEN sets.agents - same_name.depth + 1
        ELSE greatest(sets.innermost, 2)
    END AS candidates
FROM sets
LEFT JOIN chains AS certain ON certain.node = sets.node AND certain.level = 1 AND NOT certain.opens_soon
LEFT JOIN same_name ON same_name.node = sets.node
LEFT JOIN agent_times AS first_one ON first_one.level = 1 AND first_one.id = same_name.id
LEFT JOIN agent_spans ON agent_spans.node = same_name.id
WHERE sets.level = 1
