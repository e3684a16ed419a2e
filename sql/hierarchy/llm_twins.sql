-- LLM calls that were recorded twice: by the gateway, which has the token ids, and by the agent's instrumentation, which knows whose
-- call it was; or by two instrumentations at once.
-- Grain: one row per second record: `node` is left out of training, `kept` is the record that stays and takes its place.
-- Inputs: nodes, declared, outer_records, llm_content, repeated_responses, shared_ids, spans.
-- Rule: two records are one call by one of these `method`s. The record with token ids stays; else the one that knows its policy; else the
-- earliest.
-- `response_id`: LLM spans of one attempt with the same response id, unless token ids of several lengths or contents, or at several times,
-- came under it (a mock's constant id identifies nothing).
-- `nested`: an LLM span inside an LLM span that has no other id (an HTTP client's spans may lie between); a span around several calls is
-- taken for the first.
-- `content`: two records that say the same at the same time, if no third does, one of them has no response id, and both name one model, as
-- far as they name one.
WITH RECURSIVE
llm AS NOT MATERIALIZED (
    SELECT
        node,
        attempt,
        response_key,
        policy,
        start_ns,
        coalesce(end_ns, start_ns) AS end_ns,
        CASE WHEN prompt_tokens IS NOT NULL AND response_tokens IS NOT NULL THEN (prompt_tokens, response_tokens) END AS lengths
    FROM nodes
    WHERE op = 'llm'
),
unlike AS (
    -- Ids of one length that are not the same ids; or the same, sampled again later.
    SELECT llm.response_key
    FROM shared_ids
    JOIN llm USING (node)
    JOIN spans USING (record_offset, record_index)
    GROUP BY llm.response_key
    HAVING count(DISTINCT hash(spans.prompt_ids, spans.response_ids)) > 1 OR max(llm.start_ns) > min(llm.end_ns) + clock_tolerance_ns()
),
same_response AS MATERIALIZED (
    SELECT llm.node, shared.first
    FROM llm
    JOIN (
        SELECT response_key, min(llm.node) AS first
        FROM llm
        SEMI JOIN repeated_responses USING (response_key)
        GROUP BY response_key
        HAVING count(DISTINCT lengths) <= 1
    ) AS shared USING (response_key)
    ANTI JOIN unlike USING (response_key)
),
inside AS MATERIALIZED (
    SELECT declared.node, declared.parent, above.op
    FROM declared
    JOIN outer_records AS above ON above.node = declared.parent AND above.op <> 'tool'
    SEMI JOIN llm ON llm.node = declared.node
),
enclosing AS MATERIALIZED (
    -- The LLM span right above each LLM span.
    SELECT node, parent AS outer_node FROM inside WHERE op = 'llm'
    UNION ALL
    SELECT inside.node, client.parent
    FROM inside
    JOIN declared AS client ON client.node = inside.parent
    JOIN llm AS above ON above.node = client.parent
    WHERE inside.op = 'other'
),
nested AS MATERIALIZED (
    SELECT min(within.node) AS node, outside.node AS outer_node
    FROM enclosing
    JOIN llm AS within ON within.node = enclosing.node
    JOIN llm AS outside ON outside.node = enclosing.outer_node
    WHERE coalesce(within.response_key = outside.response_key, true) AND coalesce(within.lengths = outside.lengths, true)
    GROUP BY outside.node
),
linked AS MATERIALIZED (
    -- Between groups of one response id; `first` stands for such a group.
    SELECT coalesce(a.first, nested.node) AS node, coalesce(b.first, nested.outer_node) AS other
    FROM nested
    LEFT JOIN same_response AS a ON a.node = nested.node
    LEFT JOIN same_response AS b ON b.node = nested.outer_node
),
together AS (
    SELECT node, node AS member FROM (SELECT node FROM linked UNION SELECT other FROM linked)
    UNION
    SELECT together.node, linked.other
    FROM together
    JOIN (FROM linked UNION SELECT other, node FROM linked) AS linked ON linked.node = together.member
),
by_id AS MATERIALIZED (
    -- Records of one call as ids and nesting tell it.
    SELECT same_response.node, coalesce(joined.call, first) AS call
    FROM same_response
    LEFT JOIN (SELECT node, min(member) AS call FROM together GROUP BY node) AS joined ON joined.node = first
    UNION
    SELECT node, min(member) FROM together GROUP BY node
),
calls AS MATERIALIZED (
    -- What each of them said; calls of one record among them.
    SELECT
        llm.attempt,
        coalesce(by_id.call, llm.node) AS call,
        llm_content.said,
        llm_content.models,
        max(llm.response_key) OVER same_call AS response_key,
        max(llm.lengths) OVER same_call AS lengths,
        llm.start_ns,
        llm.end_ns
    FROM llm
    JOIN llm_content USING (node)
    LEFT JOIN by_id USING (node)
    WINDOW same_call AS (PARTITION BY coalesce(by_id.call, llm.node))
),
same_content AS (
    SELECT
        min(call) AS call,
        max(call) AS other,
        flatten(list(models) FILTER (WHERE call = first)) AS models,
        flatten(list(models) FILTER (WHERE call <> first)) AS other_models
    FROM (SELECT *, min(call) OVER (PARTITION BY attempt, said) AS first FROM calls)
    GROUP BY attempt, said
    HAVING count(DISTINCT call) = 2
        AND count(DISTINCT response_key) <= 1
        AND count(DISTINCT lengths) <= 1
        AND bool_or(response_key IS NULL)
        AND max(start_ns) <= min(end_ns) + clock_tolerance_ns()
),
told_alike AS (
    -- A call that is like two others is neither.
    SELECT call, other
    FROM (
        SELECT DISTINCT call, other
        FROM same_content
        WHERE len(models) = 0 OR len(other_models) = 0 OR list_has_any(models, other_models)
    )
    QUALIFY count(*) OVER (PARTITION BY call) = 1 AND count(*) OVER (PARTITION BY other) = 1
),
found AS (
    FROM by_id
    UNION ALL
    SELECT node, node AS call
    FROM (SELECT call AS node FROM told_alike UNION SELECT other FROM told_alike)
    ANTI JOIN by_id USING (node)
),
members AS (
    SELECT found.node, coalesce(told_alike.call, found.call) AS call
    FROM found
    LEFT JOIN told_alike ON told_alike.other = found.call
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
        WHEN node IN (SELECT node FROM nested UNION ALL SELECT outer_node FROM nested) THEN 'nested'
        ELSE 'content'
    END AS method
FROM keepers
WHERE node <> kept
