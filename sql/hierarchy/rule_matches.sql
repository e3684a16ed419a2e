-- How many spans each rule of the settings (`agent_rules`) names.
-- Grain: one row per rule that names any; `rank` is its place in the settings. Inputs: user_names.
SELECT rank, count(*) AS spans FROM user_names GROUP BY rank
