-- What sql/hierarchy/agent_times.sql says, said in pairs: every agent with all around it, every agent with those it meeting.
-- Grain, inputs and rule: those of that file.
WITH RECURSIVE
agents AS (
    SELECT inner_one.node, inner_one.attempt, outer_one.node AS up, inner_one.start_ns, inner_one.end_ns, hash(coalesce(outer_one.node, 0), inner_one.agent)::HUGEINT AS kin
    FROM agent_spans AS inner_one
    LEFT JOIN agent_spans AS outer_one ON outer_one.node = inner_one.outer_node AND outer_one.runs
    WHERE inner_one.runs AND inner_one.attempt IN (SELECT attempt FROM waiting)
),
around AS (
    -- Each with itself and every agent around it.
    SELECT node, node AS above FROM agents
    UNION ALL
    SELECT around.node, agents.up FROM around JOIN agents ON agents.node = around.above WHERE agents.up IS NOT NULL
),
stretched AS (
    SELECT around.above AS node, min(agents.start_ns) AS start_ns, max(agents.end_ns) AS end_ns
    FROM around
    JOIN agents USING (node)
    GROUP BY around.above
),
levels AS (
    SELECT around.node, count(*) AS depth, bool_or(agents.up IS NOT NULL AND agents.node IN (SELECT node FROM outer_work)) AS contested
    FROM around
    JOIN agents ON agents.node = around.above
    GROUP BY around.node
),
runs AS (
    SELECT agents.* EXCLUDE (start_ns, end_ns), stretched.* EXCLUDE (node), levels.* EXCLUDE (node)
    FROM agents
    JOIN stretched USING (node)
    JOIN levels USING (node)
),
meeting AS (
    SELECT a.node, b.node AS other, a.kin = b.kin AS alike, coalesce(a.up = b.up, false) AS siblings
    FROM runs AS a
    JOIN runs AS b ON b.attempt = a.attempt AND a.start_ns <= b.end_ns AND b.start_ns <= a.end_ns
),
groups AS (
    SELECT node, node AS member FROM runs
    UNION
    SELECT groups.node, meeting.other FROM groups JOIN meeting ON meeting.node = groups.member AND meeting.alike
),
covers AS (
    SELECT node, node AS member FROM runs WHERE up IS NOT NULL
    UNION
    SELECT covers.node, meeting.other FROM covers JOIN meeting ON meeting.node = covers.member AND meeting.siblings
),
nested AS (
    SELECT
        runs.*,
        (SELECT min(member) FROM groups WHERE groups.node = runs.node) AS group_id,
        (SELECT min(member) FROM groups WHERE groups.node = runs.up) AS up_group,
        (SELECT min(member) FROM covers WHERE covers.node = runs.node) AS cover,
        (SELECT kin FROM agents WHERE agents.node = runs.up) AS up_kin
    FROM runs
)
SELECT 1 AS level, attempt, node AS id, up, depth, start_ns, end_ns, kin, up_kin, contested FROM nested
UNION ALL
SELECT 2, attempt, group_id, min(up_group), min(depth), min(start_ns), max(end_ns), min(kin), min(up_kin), bool_or(contested)
FROM nested
WHERE attempt IN (SELECT attempt FROM nested WHERE node <> group_id)
GROUP BY attempt, group_id
UNION ALL
SELECT 0, attempt, cover, up, NULL, min(start_ns), max(end_ns), NULL, NULL, false
FROM nested
WHERE up IS NOT NULL
GROUP BY attempt, up, cover
