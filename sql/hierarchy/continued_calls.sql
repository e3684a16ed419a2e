-- Whose conversation a call goes on with: its prompt repeats an earlier call's messages and its reply.
-- Grain: one row per such call of an attempt in which spans wait for a place; `earlier` is that call, `opening` the first of the
-- conversation. Inputs: prompts.
-- Rule: the same messages up to the last reply among them, hence the same leading system messages, and the same tools. Where several
-- earlier calls said the same, none.
WITH RECURSIVE
replies AS MATERIALIZED (
    SELECT attempt, node, start_ns, unnest(replies) AS said FROM prompts WHERE replies IS NOT NULL
),
continued AS MATERIALIZED (
    SELECT prompts.attempt, prompts.node, min(replies.node) AS earlier
    FROM prompts
    JOIN replies USING (attempt, said)
    WHERE replies.node <> prompts.node AND coalesce(replies.start_ns < prompts.start_ns, false)
    GROUP BY prompts.attempt, prompts.node
    HAVING count(DISTINCT replies.node) = 1
),
openings AS (
    SELECT node, earlier, earlier AS opening FROM continued ANTI JOIN (SELECT node AS earlier FROM continued) AS later USING (earlier)
    UNION ALL
    SELECT continued.node, continued.earlier, openings.opening
    FROM openings
    JOIN continued ON continued.earlier = openings.node
)
SELECT continued.attempt, openings.* FROM openings JOIN continued USING (node)
