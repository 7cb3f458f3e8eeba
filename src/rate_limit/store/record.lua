-- Charges whatever the policies say.
local is_charging, is_forced = true, true
