-- Advantages of single tokens by a critic: GAE over the trained tokens of a rollout, through all its calls.
-- Grain: one row per sequence; every list has one entry a trained token. `returns` is the critic's target.
-- Inputs: token_scores (`values`: the critic's of each token), sequence_calls, options (gae_lambda, normalize).
-- Rule: A(t) = d(t) + lambda * g * A(next), d(t) = r(t) + g * V(next) - V(t) (Schulman et al. 2016, arXiv:1506.02438, equation 16).
-- V is what the group's other rollouts got at this step (`others` of its call), plus the critic's value; so `returns` is A + V less `others`. The
-- next token is that of the same call or, after its last, the first of the rollout's next call: prompts and tool results in between are no
-- steps. g is 1 within a call and the call's `discount` after it; r is the call's reward, at its last token. `explained_variance`: the share of the
-- variance of `returns` that the critic's values explain.
-- Of n tokens: a sum over the first 2k is that over k and, times its weight, that over the k behind them; so log n rounds.
WITH RECURSIVE tokens AS MATERIALIZED (
    -- `token`: a number of its own, in the order of sequence and place.
    SELECT row_number() OVER (ORDER BY sequence_id, number) AS token, *
    FROM (
        SELECT sequence_id, generate_subscripts("values", 1) AS number, unnest("values")::DOUBLE AS value FROM token_scores
    )
),
calls AS MATERIALIZED (
    SELECT
        *,
        coalesce(sum(tokens) OVER (PARTITION BY sequence_id ORDER BY place ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before,
        sum(tokens) OVER (PARTITION BY attempt) AS longest
    FROM sequence_calls
),
placed AS MATERIALIZED (
    SELECT
        tokens.* REPLACE (tokens.value + calls.others AS value),
        tokens.value AS said,
        calls.call_id,
        calls.choice,
        calls.longest,
        tokens.number = calls.before + 1 AS begins,
        CASE WHEN tokens.number = calls.before + calls.tokens THEN calls.next_call END AS next_call,
        CASE WHEN tokens.number = calls.before + calls.tokens THEN calls.discount ELSE 1 END AS discount,
        CASE WHEN tokens.number = calls.before + calls.tokens THEN calls.reward ELSE 0 END AS reward,
        tokens.number = calls.before + calls.tokens AS ends
    FROM tokens
    JOIN calls
        ON calls.sequence_id = tokens.sequence_id
        AND tokens.number > calls.before
        AND tokens.number <= calls.before + calls.tokens
),
beginnings AS (
    -- Of several choices the first stands for the call.
    SELECT call_id, min_by(token, choice) AS token FROM placed WHERE begins GROUP BY call_id
),
steps AS MATERIALIZED (
    SELECT
        this.*,
        CASE WHEN this.ends THEN beginnings.token ELSE this.token + 1 END AS next
    FROM placed AS this
    LEFT JOIN beginnings ON beginnings.call_id = this.next_call
),
sums AS (
    SELECT
        steps.token,
        steps.next,
        1::BIGINT AS summed,
        steps.longest,
        options.gae_lambda * steps.discount AS weight,
        steps.reward + coalesce(steps.discount * following.value, 0) - steps.value AS total
    FROM steps
    CROSS JOIN options
    LEFT JOIN placed AS following ON following.token = steps.next
    UNION ALL
    SELECT
        this.token,
        behind.next,
        2 * this.summed,
        this.longest,
        this.weight * coalesce(behind.weight, 0),
        this.total + this.weight * coalesce(behind.total, 0)
    FROM sums AS this
    LEFT JOIN sums AS behind ON behind.token = this.next
    WHERE this.summed < this.longest
),
summed AS (
    SELECT steps.sequence_id, steps.number, steps.said, sums.total AS advantage, sums.total + steps.said AS return
    FROM sums
    JOIN steps USING (token)
    WHERE sums.summed >= sums.longest
),
moments AS (
    -- Sorted lists: sums and deviations must not depend on the order of the input.
    SELECT
        list_avg(list_sort(list(advantage))) AS mean,
        list_stddev_pop(list_sort(list(advantage))) AS deviation,
        1 - list_var_pop(list_sort(list(return - said))) / nullif(list_var_pop(list_sort(list(return))), 0) AS explained_variance
    FROM summed
)
SELECT
    summed.sequence_id,
    list(
        CASE WHEN options.normalize THEN (advantage - mean) / (deviation + 1e-8) ELSE advantage END ORDER BY number
    )::FLOAT[] AS advantages,
    list(return ORDER BY number)::FLOAT[] AS returns,
    any_value(moments.explained_variance) AS explained_variance
FROM summed
CROSS JOIN moments
CROSS JOIN options
GROUP BY summed.sequence_id
ORDER BY summed.sequence_id
