-- The calls of each sequence, in their order in time, with the reward of each: advantages of single tokens are made from them.
-- Grain: one row per trained call and choice. `place` counts the sequence's trained calls from 1; `tokens` are those sampled in it.
-- Inputs: sequences, merges, call_returns, reward_settings.
-- Rule: `next_call` is the next trained call of the same rollout (and of the same agent, if rewards are given to calls); NULL after the last. Its
-- value counts times `discount`. `reward` is the call's own reward, so that these discounted sums are the call's return:
-- final: the rollout's reward, for its last call. discounted: the call's return less the discounted return of the next. nearest: its return,
-- with a discount of 0. `others`: the mean return of the group's other rollouts at the same step of the same agent, each once; 0 if there is
-- none.
WITH trained AS (
    SELECT policy, sequence_id, generate_subscripts(call_ids, 1) AS place, unnest(call_ids) AS id FROM sequences
),
calls AS (
    SELECT DISTINCT call_returns.* FROM call_returns JOIN trained ON split_part(trained.id, '.', 1)::BIGINT = call_returns.call_id
),
compared AS (
    SELECT
        policy,
        group_id,
        rollout_id,
        attempt_id,
        agent,
        step,
        avg(return) AS return
    FROM call_returns
    WHERE left_out IS NULL
    GROUP BY ALL
),
others AS (
    -- Sorted lists: a sum must not depend on the order of its input.
    SELECT
        * EXCLUDE (return),
        (list_sum(list_sort(list(return) OVER same_step)) - return) / nullif(count(*) OVER same_step - 1, 0) AS others
    FROM compared
    WINDOW same_step AS (PARTITION BY policy, group_id, agent, step)
),
ordered AS (
    SELECT
        calls.*,
        settings.assign,
        coalesce(others.others, 0) AS others,
        lead(calls.call_id) OVER next AS next_call,
        lead(calls.return) OVER next AS next_return,
        CASE settings.assign
            WHEN 'final' THEN 1
            WHEN 'nearest' THEN 0
            ELSE settings.gamma ** (lead(calls.step) OVER next - calls.step)
        END AS discount
    FROM calls
    CROSS JOIN reward_settings AS settings
    LEFT JOIN others USING (policy, group_id, rollout_id, attempt_id, agent, step)
    WINDOW next AS (PARTITION BY calls.policy, calls.rollout_id, calls.attempt_id, calls.agent ORDER BY calls.step, calls.call_id)
)
SELECT
    trained.policy,
    trained.sequence_id,
    trained.place,
    ordered.rollout_id || '/' || ordered.attempt_id AS attempt,
    ordered.call_id,
    merges.choice,
    merges.tokens - merges.prompt_tokens AS tokens,
    ordered.next_call,
    coalesce(ordered.discount, 0)::DOUBLE AS discount,
    ordered.others::DOUBLE AS others,
    CASE ordered.assign
        WHEN 'final' THEN CASE WHEN ordered.next_call IS NULL THEN ordered.return ELSE 0 END
        WHEN 'nearest' THEN ordered.return
        ELSE ordered.return - coalesce(ordered.discount * ordered.next_return, 0)
    END::DOUBLE AS reward
FROM trained
JOIN merges ON merges.call_id || '.' || merges.choice = trained.id
JOIN ordered ON ordered.call_id = merges.call_id AND ordered.policy = trained.policy
ORDER BY trained.sequence_id, trained.place
