-- Charges every policy that admits, if all enforced ones do.
local is_charging, is_forced = true, false
