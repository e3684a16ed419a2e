-- REINFORCE: the return as it is.
-- Grain: one row per row of `returns` that acted. Nothing is left out.
-- Inputs: returns.
-- Rule: A = R (Williams 1992, Simple statistical gradient-following algorithms), without a baseline: give rewards that are centred already.
SELECT * EXCLUDE (acted), return AS advantage, NULL::VARCHAR AS left_out FROM returns WHERE acted
