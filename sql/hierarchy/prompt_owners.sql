-- The one agent to which a prompt is attributed, within an attempt.
-- Grain: one row per (attempt, prompt) with such an agent. `known`: the run's earlier epochs tell it.
-- Inputs: prompt_keys, prompt_agents, prompt_candidates, clocks, known_prompts (prompt_key, agent: of earlier epochs of the run).
-- Rule: the first that applies: the one agent whose calls have the prompt by ids; the one that earlier epochs know it of; the only candidate
-- that is left; the only likely one. An agent has one prompt unless ids say otherwise, so an agent that has one is no candidate for another.
-- There is no owner in these cases: two prompts have the same single candidate left; time places a call with the prompt in an agent that
-- was not open at another such call and has no other prompt; the attempt's clocks are unknown (then ids alone decide); the attempt has
-- only one prompt (its agents share it, or its agent's span may be lost).
WITH RECURSIVE
known AS MATERIALIZED (
    SELECT DISTINCT prompt_keys.attempt, prompt_key, known_prompts.agent
    FROM known_prompts
    JOIN prompt_keys USING (prompt_key)
),
several AS MATERIALIZED (
    SELECT attempt FROM prompt_keys GROUP BY attempt HAVING count(DISTINCT prompt_key) > 1
),
possible AS MATERIALIZED (
    FROM prompt_candidates SEMI JOIN several USING (attempt) ANTI JOIN (FROM clocks WHERE unknown) AS clocks USING (attempt)
),
owners(attempt, prompt_key, agent) USING KEY (attempt, prompt_key, agent) AS (
    SELECT attempt, prompt_key, agent FROM prompt_agents SEMI JOIN several USING (attempt)
    UNION ALL
    SELECT attempt, prompt_key, agent FROM known ANTI JOIN prompt_agents USING (attempt, prompt_key)
    UNION ALL
    SELECT DISTINCT attempt, 0::UBIGINT, NULL FROM possible
    UNION
    SELECT attempt, prompt_key, agent
    FROM (
        SELECT
            possible.attempt,
            possible.prompt_key,
            count(*) = 1 AS alone,
            CASE WHEN alone THEN any_value(possible.agent) ELSE any_value(possible.agent) FILTER (likely) END AS agent
        FROM possible
        SEMI JOIN owners USING (attempt)
        ANTI JOIN recurring.owners AS taken ON taken.attempt = possible.attempt AND taken.agent = possible.agent
        ANTI JOIN recurring.owners AS placed ON placed.attempt = possible.attempt AND placed.prompt_key = possible.prompt_key
        GROUP BY possible.attempt, possible.prompt_key
        HAVING bool_and(open) AND (count(*) = 1 OR count(*) FILTER (likely) = 1)
    )
    -- What is likely waits until nothing more is certain.
    QUALIFY (alone OR NOT bool_or(alone) OVER (PARTITION BY attempt)) AND count(*) OVER (PARTITION BY attempt, agent, alone) = 1
)
SELECT owners.attempt, owners.prompt_key, any_value(owners.agent) AS agent, any_value(known.agent) IS NOT NULL AS known
FROM owners
LEFT JOIN known ON known.attempt = owners.attempt AND known.prompt_key = owners.prompt_key AND known.agent = owners.agent
WHERE owners.agent IS NOT NULL
GROUP BY owners.attempt, owners.prompt_key
HAVING count(*) = 1
