-- An algorithm's scores of each trained token before an epoch's first step, and what SQL made of them.
-- Grain: one row per (run, epoch, policy, name, sequence_id). Inputs: stored.token_scores.
-- Rule: `numbers` has one entry a trained token: those of the sequence whose loss_mask is 1, in their order. If there are scores, `logprobs` are those
-- by the weights that the epoch begins with. `ppo` has values, returns and advantages. `grpo` and `sft` have no rows: their tokens have the
-- advantage in `sequences`. If sequences are derived again with another result, the scores of the former training are removed.
FROM stored.token_scores
