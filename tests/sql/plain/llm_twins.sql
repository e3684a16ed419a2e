-- What sql/hierarchy/llm_twins.sql says, said in pairs of spans, whatever it costs to read every text and every token id.
-- Grain, inputs and rule: those of that file.
WITH RECURSIVE
llm AS (
    SELECT
        nodes.* EXCLUDE (end_ns),
        coalesce(nodes.end_ns, nodes.start_ns) AS end_ns,
        CASE WHEN prompt_tokens IS NOT NULL AND response_tokens IS NOT NULL THEN (prompt_tokens, response_tokens) END AS lengths,
        (spans.prompt_ids, spans.response_ids) AS ids
    FROM nodes
    JOIN spans USING (record_offset, record_index)
    WHERE nodes.op = 'llm'
),
-- No two records of an id contradict each other.
same_response AS (
    SELECT a.node, b.node AS other
    FROM llm AS a
    JOIN llm AS b ON b.response_key = a.response_key AND b.node <> a.node
    WHERE NOT EXISTS (
        FROM llm AS x
        JOIN llm AS y ON y.response_key = x.response_key
        WHERE x.response_key = a.response_key
            AND x.node <> y.node
            AND (x.lengths <> y.lengths OR (x.lengths = y.lengths AND (x.ids <> y.ids OR x.start_ns > y.end_ns + clock_tolerance_ns())))
    )
),
inside AS (
    SELECT within.node, outside.node AS outer_node
    FROM llm AS within
    JOIN declared AS step USING (node)
    LEFT JOIN nodes AS client ON client.node = step.parent AND client.op = 'other'
    LEFT JOIN declared AS further ON further.node = client.node
    JOIN llm AS outside ON outside.node = coalesce(further.parent, step.parent)
    WHERE coalesce(within.response_key = outside.response_key, true) AND coalesce(within.lengths = outside.lengths, true)
),
nested AS (
    SELECT * FROM inside WHERE node = (SELECT min(i.node) FROM inside AS i WHERE i.outer_node = inside.outer_node)
),
linked AS (
    SELECT node, other FROM same_response
    UNION
    SELECT node, outer_node FROM nested
    UNION
    SELECT outer_node, node FROM nested
),
together AS (
    SELECT node, node AS member FROM llm
    UNION
    SELECT together.node, linked.other FROM together JOIN linked ON linked.node = together.member
),
records AS (
    SELECT llm.*, (SELECT min(member) FROM together WHERE together.node = llm.node) AS call FROM llm
),
said AS (
    -- With what is known of the call from any record that has a text.
    SELECT
        records.* REPLACE (max(records.response_key) OVER same_call AS response_key, max(records.lengths) OVER same_call AS lengths),
        llm_content.said,
        llm_content.models
    FROM records
    JOIN llm_content USING (node)
    WINDOW same_call AS (PARTITION BY records.call)
),
-- Of two calls that say the same: nothing tells them apart, they are at one time, and no third says so.
alike AS (
    SELECT DISTINCT a.call, b.call AS other
    FROM said AS a
    JOIN said AS b ON b.attempt = a.attempt AND b.said = a.said AND b.call > a.call
    WHERE NOT EXISTS (FROM said AS c WHERE c.attempt = a.attempt AND c.said = a.said AND c.call <> a.call AND c.call <> b.call)
        AND (a.response_key IS NULL OR b.response_key IS NULL)
        AND coalesce(a.lengths = b.lengths, true)
        AND NOT EXISTS (
            FROM said AS x
            JOIN said AS y ON y.attempt = x.attempt AND y.said = x.said
            WHERE x.attempt = a.attempt AND x.said = a.said AND x.start_ns > y.end_ns + clock_tolerance_ns()
        )
        AND coalesce((
            SELECT len(flatten(list(x.models))) = 0 OR len(flatten(list(y.models))) = 0 OR list_has_any(flatten(list(x.models)), flatten(list(y.models)))
            FROM said AS x
            CROSS JOIN said AS y
            WHERE x.call = a.call AND y.call = b.call AND x.said = a.said AND y.said = a.said
        ), true)
),
alone AS (
    SELECT * FROM alike
    WHERE (SELECT count(*) FROM alike AS more WHERE more.call = alike.call) = 1
        AND (SELECT count(*) FROM alike AS more WHERE more.other = alike.other) = 1
),
members AS (
    SELECT records.*, coalesce(alone.call, records.call) AS whole FROM records LEFT JOIN alone ON alone.other = records.call
),
kept AS (
    SELECT a.node, b.node AS kept
    FROM members AS a
    JOIN members AS b ON b.whole = a.whole
    QUALIFY row_number() OVER (PARTITION BY a.node ORDER BY b.lengths IS NULL, b.policy IS NULL, b.node) = 1
)
SELECT
    node,
    kept,
    CASE
        WHEN node IN (SELECT node FROM same_response) THEN 'response_id'
        WHEN node IN (SELECT node FROM nested UNION ALL SELECT outer_node FROM nested) THEN 'nested'
        ELSE 'content'
    END AS method
FROM kept
WHERE node <> kept
