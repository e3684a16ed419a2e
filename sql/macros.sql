-- Numbers that several files share. Every connection of a lake has them, and so has its catalog.
-- How far the clocks of two processes may be apart without its saying anything, in ns.
CREATE OR REPLACE MACRO clock_tolerance_ns() AS 50_000_000::BIGINT;
-- The end of what has none: after every time.
CREATE OR REPLACE MACRO never_ns() AS 9223372036854775807::BIGINT;
