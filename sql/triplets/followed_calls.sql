-- Which earlier triplet's tokens a later prompt goes on from, token for token.
-- Grain: one row per triplet that goes on from another.
-- Inputs: triplets, triplet_ends.
-- Rule: within an attempt and policy, the longest earlier prompt + response that the later prompt begins with. Every
-- pair is compared by its lengths and by four tokens at first; then the longest that is left, token for token; the others
-- only where that one was wrong. So a conversation of n calls costs n comparisons of whole prompts, not n².
WITH pairs AS (
    SELECT
        later.call_id,
        later.choice,
        {'call': earlier.call_id, 'choice': earlier.choice, 'prompt_tokens': earlier.prompt_tokens, 'tokens': earlier.tokens, 'places': earlier.places, 'probes': earlier.probes} AS earlier
    FROM triplet_ends AS later
    JOIN triplet_ends AS earlier
        ON later.rollout_id = earlier.rollout_id
        AND later.attempt_id = earlier.attempt_id
        AND later.policy = earlier.policy
        AND earlier.call_id < later.call_id
        AND earlier.tokens <= later.prompt_tokens
    WHERE later.merge = 'prefix'
),
asked AS (
    -- One list a prompt: its tokens are looked up once, however many earlier triplets there are.
    SELECT call_id, choice, list(earlier) AS earlier FROM pairs GROUP BY call_id, choice
),
looked_up AS (
    SELECT
        call_id,
        choice,
        unnest(earlier) AS earlier,
        unnest(list_select(prompt_ids, [e.places[1] FOR e IN earlier])) AS first_token,
        unnest(list_select(prompt_ids, [e.places[2] FOR e IN earlier])) AS second_token,
        unnest(list_select(prompt_ids, [e.places[3] FOR e IN earlier])) AS third_token,
        unnest(list_select(prompt_ids, [e.places[4] FOR e IN earlier])) AS fourth_token
    FROM asked
    JOIN triplets USING (call_id, choice)
),
likely AS (
    SELECT call_id, choice, earlier
    FROM looked_up
    WHERE earlier.probes = [first_token, second_token, third_token, fourth_token]
),
ranked AS (
    SELECT
        call_id,
        choice,
        earlier.call AS earlier_call,
        earlier.choice AS earlier_choice,
        earlier.prompt_tokens,
        earlier.tokens,
        row_number() OVER (
            PARTITION BY call_id, choice ORDER BY earlier.tokens DESC, earlier.call DESC, earlier.choice
        ) AS place
    FROM likely
),
longest AS (
    SELECT
        ranked.*,
        earlier.prompt_ids = later.prompt_ids[1:ranked.prompt_tokens]
            AND earlier.response_ids = later.prompt_ids[ranked.prompt_tokens + 1:ranked.tokens] AS follows
    FROM ranked
    JOIN triplets AS later USING (call_id, choice)
    JOIN triplets AS earlier ON earlier.call_id = ranked.earlier_call AND earlier.choice = ranked.earlier_choice
    WHERE place = 1
),
others AS (
    SELECT ranked.*
    FROM ranked
    SEMI JOIN (SELECT call_id, choice FROM longest WHERE NOT follows) AS wrong USING (call_id, choice)
    JOIN triplets AS later USING (call_id, choice)
    JOIN triplets AS earlier ON earlier.call_id = ranked.earlier_call AND earlier.choice = ranked.earlier_choice
    WHERE place > 1
        AND earlier.prompt_ids = later.prompt_ids[1:ranked.prompt_tokens]
        AND earlier.response_ids = later.prompt_ids[ranked.prompt_tokens + 1:ranked.tokens]
    QUALIFY row_number() OVER (PARTITION BY call_id, choice ORDER BY place) = 1
)
SELECT call_id, choice, earlier_call, earlier_choice FROM longest WHERE follows
UNION ALL
SELECT call_id, choice, earlier_call, earlier_choice FROM others
ORDER BY call_id, choice
