-- Calls that continue an earlier reply as text, but with other tokens than were sampled.
-- Grain: one row per call. `earlier_call`, `earlier_choice`: the reply. `drift_position`: the first token, counted from 0 as in token_ids, at which
-- the later prompt differs from the earlier prompt + response. `in_reply`: whether that is a sampled token. `drift_tokens`: the number of
-- sampled tokens that came back differently.
-- Inputs: triplets, conversations.
-- Rule: the later call's messages, up to the last reply among them, are the earlier call's messages and its reply. The reply's tokens before the
-- first difference, and those at its end that are alike, came back as sampled; the later prompt's reply is taken to end where the earlier
-- reply's last token next occurs.
WITH replies AS (
    SELECT call_id, rollout_id, attempt_id, policy, unnest(replies) AS said, unnest(range(len(replies))) AS choice
    FROM conversations
),
pairs AS (
    SELECT later.call_id, max_by((replies.call_id, replies.choice), (replies.call_id, -replies.choice)) AS earlier
    FROM conversations AS later
    JOIN replies USING (rollout_id, attempt_id, policy, said)
    WHERE replies.call_id < later.call_id
    GROUP BY later.call_id
),
prompts AS (
    -- The choices of a call have one prompt.
    SELECT triplets.call_id, min(triplets.choice) AS choice FROM triplets SEMI JOIN pairs USING (call_id) GROUP BY ALL
),
tokens AS (
    SELECT
        pairs.call_id,
        earlier.call_id AS earlier_call,
        earlier.choice AS earlier_choice,
        earlier.prompt_ids AS prompt,
        earlier.response_ids AS response,
        later.prompt_ids AS later_prompt,
        later.prompt_ids[len(earlier.prompt_ids) + 1:] AS rest
    FROM pairs
    JOIN prompts USING (call_id)
    JOIN triplets AS later ON later.call_id = prompts.call_id AND later.choice = prompts.choice
    JOIN triplets AS earlier ON earlier.call_id = pairs.earlier[1] AND earlier.choice = pairs.earlier[2]
),
departures AS (
    -- How many tokens agree: of the earlier prompt, and where all of that does, of the response too.
    SELECT
        *,
        coalesce(list_position([z[1] IS NOT DISTINCT FROM z[2] FOR z IN list_zip(prompt, later_prompt[1:len(prompt)])], false) - 1, len(prompt)) AS in_prompt,
        coalesce(list_position([z[1] IS NOT DISTINCT FROM z[2] FOR z IN list_zip(response, rest[1:len(response)])], false) - 1, len(response)) AS in_response
    FROM tokens
),
endings AS (
    SELECT
        *,
        response[in_response + 1:] AS sampled,
        rest[in_response + 1:in_response + list_position(rest[in_response + 1:], response[-1])] AS came
    FROM departures
)
SELECT
    call_id,
    earlier_call,
    earlier_choice,
    in_prompt = len(prompt) AS in_reply,
    (CASE WHEN in_prompt = len(prompt) THEN len(prompt) + in_response ELSE in_prompt END)::INTEGER AS drift_position,
    (len(sampled) - coalesce(
        list_position([z[1] IS NOT DISTINCT FROM z[2] FOR z IN list_zip(list_reverse(sampled), list_reverse(came))], false) - 1, len(sampled)
    ))::INTEGER AS drift_tokens
FROM endings
ORDER BY call_id
