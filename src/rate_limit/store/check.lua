-- Decides without charging.
local is_charging, is_forced = false, false
