-- No call had a prompt of the settings: the agent sends another text than the prompt's file, so no version of it reaches the model.
-- Grain: one row per (epoch, mode). Parameters: run. Inputs: rollouts, calls.
-- Remedy: Give the prompt's `file` the text that the agent sends as a system message, or find it by `prompts.NAME.match` (docs/prompts.md); an agent that asks for its prompts and sends them elsewhere than in a system message needs neither.
-- Evidence: SELECT epoch, mode, prompts_found, left(input_messages, 200) AS sent, count(*) AS calls FROM calls WHERE run = $run AND prompts_found IS NOT NULL GROUP BY ALL ORDER BY ALL
WITH looked_through AS (
    -- Calls of before this was written down say nothing of it.
    SELECT epoch, mode, prompts_found FROM calls WHERE run = $run AND prompts_found IS NOT NULL
),
counted AS (
    SELECT epoch, mode, count(*) AS calls FROM looked_through GROUP BY ALL
),
found AS (
    SELECT DISTINCT epoch, mode, unnest(prompts_found::JSON ->> '$[*]') AS prompt FROM looked_through
),
served AS (
    SELECT DISTINCT epoch, mode, unnest(json_keys(prompts)) AS prompt FROM rollouts WHERE run = $run AND prompts IS NOT NULL
),
lacking AS (
    SELECT epoch, mode, string_agg(prompt, ', ' ORDER BY prompt) AS prompts FROM served ANTI JOIN found USING (epoch, mode, prompt) GROUP BY ALL
)
SELECT
    epoch,
    mode,
    NULL::VARCHAR AS policy,
    'error' AS severity,
    format('none of {} calls had {} in a system message', calls, prompts) AS what
FROM lacking
JOIN counted USING (epoch, mode)
