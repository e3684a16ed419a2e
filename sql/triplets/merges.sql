-- Which triplets make one sequence: a call continues the sequence that its prompt begins with, token for token.
-- Grain: one row per triplet; `sequence_id` is the id of the sequence's first triplet, `place` counts from 1.
-- Inputs: triplets.
-- Rule: within an attempt and policy a call follows the longest earlier prompt + response that its prompt begins with.
-- Of several that follow the same call the first continues it, the others begin sequences of their own (`branch`).
WITH RECURSIVE
ends AS (
    SELECT
        call_id || '.' || choice AS triplet_id,
        rollout_id,
        attempt_id,
        policy,
        start_ns,
        call_id,
        choice,
        prompt_ids,
        list_concat(prompt_ids, response_ids) AS tokens
    FROM triplets
),
predecessors AS (
    SELECT
        later.triplet_id,
        max_by(earlier.triplet_id, (len(earlier.tokens), earlier.call_id, -earlier.choice)) AS follows
    FROM ends AS later
    JOIN ends AS earlier
        ON later.rollout_id = earlier.rollout_id
        AND later.attempt_id = earlier.attempt_id
        AND later.policy = earlier.policy
        AND earlier.call_id < later.call_id
        AND len(earlier.tokens) <= len(later.prompt_ids)
        AND later.prompt_ids[1:len(earlier.tokens)] = earlier.tokens
    GROUP BY later.triplet_id
),
followers AS (
    SELECT
        predecessors.triplet_id,
        follows,
        row_number() OVER (PARTITION BY follows ORDER BY ends.call_id, ends.choice) = 1 AS continues
    FROM predecessors
    JOIN ends USING (triplet_id)
),
beginnings AS (
    SELECT
        ends.triplet_id,
        CASE
            WHEN followers.triplet_id IS NOT NULL THEN 'branch'
            WHEN ends.choice > 0 THEN 'branch'
            WHEN row_number() OVER (PARTITION BY ends.rollout_id, ends.attempt_id, ends.policy ORDER BY ends.call_id, ends.choice) = 1
                THEN 'first_call'
            ELSE 'prompt_rewritten'
        END AS reason
    FROM ends
    LEFT JOIN followers USING (triplet_id)
    WHERE followers.continues IS DISTINCT FROM true
),
chains AS (
    SELECT triplet_id, triplet_id AS sequence_id, 1 AS place, reason FROM beginnings
    UNION ALL
    SELECT followers.triplet_id, chains.sequence_id, chains.place + 1, 'continues'
    FROM chains
    JOIN followers ON followers.follows = chains.triplet_id AND followers.continues
)
SELECT ends.call_id, ends.choice, chains.sequence_id, chains.place, chains.reason
FROM chains
JOIN ends USING (triplet_id)
ORDER BY ends.call_id, ends.choice
