-- Where a run's training rollouts went: sampled, then counted, then trained on, or left out and why.
-- Grain: one row per fate. Parameters: run. Inputs: rollout_fates.
SELECT
    fate,
    counted,
    trained,
    count(*) AS rollouts,
    count(*) / sum(count(*)) OVER () AS share,
    sum(count(*)) OVER ()::BIGINT AS sampled_in_all,
    coalesce(sum(count(*)) FILTER (counted) OVER (), 0)::BIGINT AS counted_in_all,
    coalesce(sum(count(*)) FILTER (trained) OVER (), 0)::BIGINT AS trained_in_all
FROM rollout_fates
WHERE run = $run
GROUP BY fate, counted, trained
ORDER BY trained DESC, counted DESC, rollouts DESC, fate
