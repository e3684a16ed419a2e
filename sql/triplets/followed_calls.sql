-- Which earlier triplet a later prompt continues, token for token.
-- Grain: one row per triplet that continues another.
-- Inputs: triplets, triplet_ends.
-- Rule: within an attempt and policy, the longest earlier prompt + response that the later prompt begins with; of equally long ones the latest.
-- No pairs are made: a prompt's five tokens at each length that any triplet of the attempt has are joined with the triplets of that length that
-- have the same five tokens there. The longest that remains is then compared by a hash of all its tokens; shorter ones only if that one was
-- wrong. So n calls cost n comparisons of whole prompts, whether they share much, little or nothing.
WITH attempts AS MATERIALIZED (
    SELECT rollout_id, attempt_id, policy, min(call_id) AS scope, list_sort(list(DISTINCT tokens)) AS lengths
    FROM triplet_ends
    WHERE merge = 'prefix'
    GROUP BY ALL
    HAVING count(*) > 1
),
ends AS MATERIALIZED (
    SELECT
        ends.call_id,
        ends.choice,
        ends.tokens,
        attempts.scope,
        list_filter(attempts.lengths, lambda length: length <= ends.prompt_tokens) AS lengths
    FROM triplet_ends AS ends
    JOIN attempts USING (rollout_id, attempt_id, policy)
),
token_lists AS MATERIALIZED (
    -- `triplets` is a view: they are read once.
    SELECT call_id, choice, prompt_ids, response_ids FROM triplets SEMI JOIN ends USING (call_id, choice)
),
contents AS MATERIALIZED (
    SELECT
        call_id,
        choice,
        scope,
        tokens,
        hash(ids) AS content,
        hash(ids[tokens], ids[greatest(tokens - 3, 1)], ids[greatest(tokens - 12, 1)], ids[greatest(tokens - 48, 1)], ids[tokens // 2]) AS probes
    FROM (
        SELECT ends.call_id, ends.choice, scope, tokens, list_concat(prompt_ids, response_ids) AS ids
        FROM ends
        JOIN token_lists USING (call_id, choice)
    )
),
looked_up AS (
    SELECT
        ends.call_id,
        ends.choice,
        scope,
        unnest(lengths) AS tokens,
        unnest(list_select(prompt_ids, lengths)) AS last_token,
        unnest(list_select(prompt_ids, [greatest(length - 3, 1) FOR length IN lengths])) AS fourth_last,
        unnest(list_select(prompt_ids, [greatest(length - 12, 1) FOR length IN lengths])) AS thirteenth_last,
        unnest(list_select(prompt_ids, [greatest(length - 48, 1) FOR length IN lengths])) AS forty_ninth_last,
        unnest(list_select(prompt_ids, [length // 2 FOR length IN lengths])) AS middle
    FROM ends
    JOIN token_lists USING (call_id, choice)
    WHERE len(lengths) > 0
),
likely AS MATERIALIZED (
    SELECT call_id, choice, scope, tokens
    FROM looked_up
    JOIN (SELECT scope, tokens, probes, min(call_id) AS first_call FROM contents GROUP BY ALL) AS known
        USING (scope, tokens)
    WHERE known.probes = hash(last_token, fourth_last, thirteenth_last, forty_ninth_last, middle)
        AND known.first_call < looked_up.call_id
),
earlier AS (
    SELECT scope, tokens, content, call_id, min(choice) AS choice FROM contents GROUP BY ALL
),
longest AS MATERIALIZED (
    SELECT asked.call_id, asked.choice, asked.tokens, earlier.call_id AS earlier_call, earlier.choice AS earlier_choice
    FROM (
        SELECT likely.call_id, likely.choice, scope, tokens, hash(prompt_ids[1:tokens]) AS content
        FROM (SELECT call_id, choice, scope, max(tokens) AS tokens FROM likely GROUP BY ALL) AS likely
        JOIN token_lists USING (call_id, choice)
    ) AS asked
    ASOF LEFT JOIN earlier
        ON earlier.scope = asked.scope
        AND earlier.tokens = asked.tokens
        AND earlier.content = asked.content
        AND earlier.call_id < asked.call_id
),
shorter AS (
    SELECT asked.call_id, asked.choice, earlier.call_id AS earlier_call, earlier.choice AS earlier_choice
    FROM (
        SELECT likely.call_id, likely.choice, scope, likely.tokens, hash(prompt_ids[1:likely.tokens]) AS content
        FROM likely
        JOIN longest USING (call_id, choice)
        JOIN token_lists USING (call_id, choice)
        WHERE longest.earlier_call IS NULL AND likely.tokens < longest.tokens
    ) AS asked
    ASOF JOIN earlier
        ON earlier.scope = asked.scope
        AND earlier.tokens = asked.tokens
        AND earlier.content = asked.content
        AND earlier.call_id < asked.call_id
    QUALIFY row_number() OVER (PARTITION BY asked.call_id, asked.choice ORDER BY asked.tokens DESC) = 1
)
SELECT call_id, choice, earlier_call, earlier_choice FROM longest WHERE earlier_call IS NOT NULL
UNION ALL
SELECT call_id, choice, earlier_call, earlier_choice FROM shorter
ORDER BY call_id, choice
