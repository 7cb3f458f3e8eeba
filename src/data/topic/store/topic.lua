-- A log is a stream whose ids are epoch and seq, the epoch so far ahead of every clock (2^50 ms) that the server counts
-- on by itself.
local AHEAD = 1125899906842624
