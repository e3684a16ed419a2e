-- SFT: the best rollouts of each group, with at least a given reward, are examples; each trains with the same strength.
-- Grain: one row per row of `returns` that acted. `left_out` is NULL if it is an example.
-- Inputs: returns, examples (policy, best, min_reward: what the settings' `sft` says; NULL: no limit).
-- Rule: returns below min_reward are left out (`below_min_reward`), then all but the `best` highest of the group at that step
-- (`not_best_of_group`). Of equal returns the one whose rollout id comes first is taken, so that the order of the input does not matter.
WITH ranked AS (
    SELECT
        returns.*,
        examples.best,
        coalesce(returns.return < examples.min_reward, false) AS below,
        row_number() OVER (
            PARTITION BY returns.policy, returns.group_id, returns.agent, returns.step
            ORDER BY returns.return DESC, returns.rollout_id, returns.attempt_id
        ) AS place,
        count(*) OVER (PARTITION BY returns.policy, returns.group_id, returns.agent, returns.step) AS group_rollouts
    FROM returns
    JOIN examples USING (policy)
    WHERE returns.acted
)
SELECT
    * EXCLUDE (acted, best, below, place),
    CASE WHEN NOT below AND place <= coalesce(best, place) THEN 1.0 END AS advantage,
    CASE WHEN below THEN 'below_min_reward' WHEN place > best THEN 'not_best_of_group' END AS left_out
FROM ranked
