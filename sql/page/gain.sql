-- What the held-out tasks gained from the first evaluation of a run to its last, task by task.
-- Grain: one row; none before two evaluations. Parameters: run. Inputs: rollouts.
-- Rule: the reward rose, or fell, where its 95% interval from `low` to `high` does not hold 0.
SELECT *, evaluated(since) AS since_when, evaluated(epoch) AS epoch_when
FROM held_out_gains(p_run := $run)
ORDER BY since, epoch DESC
LIMIT 1
