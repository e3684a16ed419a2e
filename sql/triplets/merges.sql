-- Which triplets form one sequence, and why a sequence begins.
-- Grain: one row per triplet; `sequence_id` is the id of the sequence's first triplet, `place` counts from 1; `tokens` are those of prompt and
-- response.
-- Inputs: triplet_ends, followed_calls, token_drifts, conversations.
-- Rule: a call continues the sequence of the call that its prompt continues. If several continue the same call, only the first does; the others,
-- further choices, and the same prompt sampled again begin sequences of their own (`branch`). Other reasons to begin one:
-- `first_call`: the policy's first call in the attempt. `token_drift`: the text continues an earlier reply, but the reply came back as other tokens
-- than were sampled (drift_position, drift_tokens). `prompt_rewritten`: the opening is that of an earlier call, something after it is not.
-- `new_conversation`: not even the opening is. `per_call`: the settings merge nothing.
WITH RECURSIVE
ends AS MATERIALIZED (
    SELECT
        call_id,
        choice,
        rollout_id,
        attempt_id,
        policy,
        merge,
        prompt_tokens,
        tokens,
        row_number() OVER (PARTITION BY call_id ORDER BY choice) AS of_call,
        row_number() OVER (PARTITION BY rollout_id, attempt_id, policy ORDER BY call_id, choice) AS of_attempt
    FROM triplet_ends
),
followers AS (
    SELECT
        *,
        row_number() OVER (PARTITION BY earlier_call, earlier_choice ORDER BY call_id, choice) = 1 AS continues
    FROM followed_calls
),
openings AS (
    SELECT
        call_id,
        row_number() OVER (PARTITION BY rollout_id, attempt_id, policy, opening ORDER BY call_id) > 1 AS shared,
        row_number() OVER (PARTITION BY rollout_id, attempt_id, policy, prompt ORDER BY call_id) > 1 AS again
    FROM conversations
),
beginnings AS (
    SELECT
        ends.call_id,
        ends.choice,
        CASE
            WHEN ends.merge = 'per_call' THEN 'per_call'
            WHEN followers.call_id IS NOT NULL OR ends.of_call > 1 THEN 'branch'
            WHEN ends.of_attempt = 1 THEN 'first_call'
            WHEN openings.again THEN 'branch'
            WHEN drifts.in_reply THEN 'token_drift'
            WHEN drifts.call_id IS NOT NULL OR openings.shared THEN 'prompt_rewritten'
            ELSE 'new_conversation'
        END AS reason
    FROM ends
    LEFT JOIN followers ON followers.call_id = ends.call_id AND followers.choice = ends.choice
    LEFT JOIN token_drifts AS drifts ON drifts.call_id = ends.call_id
    LEFT JOIN openings ON openings.call_id = ends.call_id
    WHERE followers.continues IS DISTINCT FROM true
),
chains AS (
    SELECT call_id, choice, call_id || '.' || choice AS sequence_id, 1 AS place, reason FROM beginnings
    UNION ALL
    SELECT followers.call_id, followers.choice, chains.sequence_id, chains.place + 1, 'continues'
    FROM chains
    JOIN followers
        ON followers.earlier_call = chains.call_id AND followers.earlier_choice = chains.choice AND followers.continues
)
SELECT
    ends.call_id,
    ends.choice,
    ends.rollout_id,
    ends.attempt_id,
    ends.policy,
    chains.sequence_id,
    chains.place,
    ends.prompt_tokens,
    ends.tokens,
    chains.reason,
    CASE WHEN chains.reason = 'token_drift' THEN drifts.drift_position END AS drift_position,
    CASE WHEN chains.reason = 'token_drift' THEN drifts.drift_tokens END AS drift_tokens
FROM chains
JOIN ends USING (call_id, choice)
LEFT JOIN token_drifts AS drifts ON drifts.call_id = ends.call_id
ORDER BY ends.call_id, ends.choice
