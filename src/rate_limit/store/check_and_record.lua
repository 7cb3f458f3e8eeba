-- Decides, and charges every policy that admits if all enforced ones do. KEYS, ARGV and reply: see algorithms.lua.
local policies, admitted = decide_all()
if admitted then
  for _, p in ipairs(policies) do
    if p.outcome == ADMITTED and p.cost > 0 then p.rules.charge(p, p.state) end
  end
end
return reply(policies, admitted)
