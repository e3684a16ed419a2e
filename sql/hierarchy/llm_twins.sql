-- LLM calls that were seen twice: by the gateway, which has the token ids, and by the agent's instrumentation, which
-- knows whose call it was; or by two instrumentations at once.
-- Grain: one row per span that is another's twin: `node` is dropped from training, `kept` stays and takes its place.
-- Inputs: nodes, declared, llm_content.
-- Rule, by `method`: `response_id`: LLM spans of one attempt with the same response id are one call, unless token ids of
-- different lengths were sampled under it (a mock's constant id is no identity). `nested`: an LLM span in an LLM span
-- (an HTTP client's between them or not) that has no other id. `content`: the same messages and answer at the same time,
-- once in the attempt, where one of the two has no response id. The one with token ids stays; else the one that knows
-- its policy; else the earliest.
WITH RECURSIVE
llm AS MATERIALIZED (
    SELECT
        node,
        attempt,
        response_id,
        policy,
        start_ns,
        coalesce(end_ns, start_ns) AS end_ns,
        CASE WHEN prompt_tokens IS NOT NULL AND response_tokens IS NOT NULL THEN (prompt_tokens, response_tokens) END AS lengths
    FROM nodes
    WHERE op = 'llm'
),
responses AS MATERIALIZED (
    SELECT attempt, response_id, min(node) AS first
    FROM llm
    WHERE response_id IS NOT NULL
    GROUP BY attempt, response_id
    HAVING count(*) > 1 AND count(DISTINCT lengths) <= 1
),
same_response AS MATERIALIZED (
    SELECT llm.node, responses.first FROM llm JOIN responses USING (attempt, response_id)
),
enclosing AS MATERIALIZED (
    -- The LLM span right above each LLM span.
    SELECT declared.node, declared.parent AS outer_node
    FROM declared
    SEMI JOIN llm USING (node)
    JOIN llm AS above ON above.node = declared.parent
    UNION ALL
    SELECT declared.node, higher.parent
    FROM declared
    SEMI JOIN llm USING (node)
    JOIN nodes AS client ON client.node = declared.parent AND client.op = 'other'
    JOIN declared AS higher ON higher.node = client.node
    JOIN llm AS above ON above.node = higher.parent
),
nested AS (
    -- A span around several calls is taken for the first of them.
    SELECT min(inside.node) AS node, outside.node AS other
    FROM enclosing
    JOIN llm AS inside ON inside.node = enclosing.node
    JOIN llm AS outside ON outside.node = enclosing.outer_node
    WHERE coalesce(inside.response_id = outside.response_id, true) AND coalesce(inside.lengths = outside.lengths, true)
    GROUP BY outside.node
),
told_alike AS MATERIALIZED (
    SELECT attempt, said, min(llm.node) AS first
    FROM llm_content
    JOIN llm USING (node, attempt)
    GROUP BY attempt, said
    HAVING count(*) > 1
        AND count(DISTINCT response_id) <= 1
        AND count(DISTINCT lengths) <= 1
        AND max(start_ns) <= min(end_ns) + 50_000_000
),
same_content AS (
    SELECT node, first AS other FROM llm_content JOIN told_alike USING (attempt, said) WHERE node <> first
),
pairs AS MATERIALIZED (
    -- The two kinds link groups of one response id; `first` stands for such a group.
    SELECT coalesce(a.first, pair.node) AS node, coalesce(b.first, pair.other) AS other
    FROM (FROM nested UNION ALL FROM same_content) AS pair
    LEFT JOIN same_response AS a ON a.node = pair.node
    LEFT JOIN same_response AS b ON b.node = pair.other
),
linked AS (
    SELECT node, other FROM pairs
    UNION
    SELECT other, node FROM pairs
),
reached AS (
    SELECT node, node AS member FROM linked
    UNION
    SELECT reached.node, linked.other FROM reached JOIN linked ON linked.node = reached.member
),
joined AS (
    SELECT node, min(member) AS call FROM reached GROUP BY node
),
members AS (
    SELECT same_response.node, coalesce(joined.call, first) AS call
    FROM same_response
    LEFT JOIN joined ON joined.node = first
    UNION
    SELECT node, call FROM joined
),
keepers AS (
    SELECT
        node,
        first_value(node) OVER (
            PARTITION BY members.call ORDER BY llm.lengths IS NOT NULL DESC, llm.policy IS NOT NULL DESC, node
        ) AS kept
    FROM members
    JOIN llm USING (node)
)
SELECT
    node,
    kept,
    CASE
        WHEN node IN (SELECT node FROM same_response) THEN 'response_id'
        WHEN node IN (SELECT node FROM nested UNION ALL SELECT other FROM nested) THEN 'nested'
        ELSE 'content'
    END AS method
FROM keepers
WHERE node <> kept
