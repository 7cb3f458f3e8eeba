-- Charges whatever the policies say. KEYS, ARGV and reply: see algorithms.lua.
local policies = decide_all()
for _, p in ipairs(policies) do
  if p.cost > 0 then p.rules.charge(p, p.state) end
end
return reply(policies, true)
