-- What an algorithm made of each trained token before an epoch's first step: what it scored, and what SQL made of that.
-- Grain: one row per (run, epoch, policy, name, sequence_id). Inputs: stored.token_scores.
-- Rule: `numbers` has one entry a trained token: those of the sequence whose loss_mask is 1, in their order. Where there are any, `logprobs` are
-- those by the weights that the epoch begins with. `ppo` has values, returns and advantages; `grpo` and `sft` have none: there each token has the advantage in `sequences`. Where sequences
-- are made otherwise, those of the training before go.
FROM stored.token_scores
