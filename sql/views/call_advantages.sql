-- What each token of a call was trained with, if the algorithm's SQL made an advantage for each token (`ppo`; docs/algorithms.md).
-- Grain: one row per (run, epoch, rollout_id, call_id, choice) that was trained on, of such a policy.
-- Inputs: token_scores, stored.sequences, stored.merges.
-- Rule: the trained tokens of a sequence are the responses of its call_ids, one after the other. `advantage` is the mean.
WITH parts AS (
    SELECT
        sequences.run,
        sequences.epoch,
        sequences.policy,
        sequences.rollout_id,
        scores.numbers,
        sequences.sequence_id,
        unnest(sequences.call_ids) AS id,
        generate_subscripts(sequences.call_ids, 1) AS place
    FROM (FROM token_scores WHERE name = 'advantages') AS scores
    JOIN stored.sequences AS sequences USING (run, epoch, policy, sequence_id)
),
sized AS (
    SELECT
        parts.*,
        merges.call_id,
        merges.choice,
        (merges.tokens - merges.prompt_tokens)::BIGINT AS tokens,
        sum(merges.tokens - merges.prompt_tokens) OVER (
            PARTITION BY parts.run, parts.epoch, parts.rollout_id, parts.sequence_id ORDER BY parts.place
        )::BIGINT AS until
    FROM parts
    JOIN stored.merges AS merges
        ON merges.run = parts.run
        AND merges.epoch = parts.epoch
        AND merges.rollout_id = parts.rollout_id
        AND merges.call_id || '.' || merges.choice = parts.id
)
SELECT
    run,
    epoch,
    policy,
    rollout_id,
    call_id_of(run, epoch, call_id) AS call_id,
    choice,
    numbers[until - tokens + 1:until] AS advantages,
    list_avg(numbers[until - tokens + 1:until]) AS advantage
FROM sized
