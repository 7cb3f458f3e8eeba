-- Decides without charging. KEYS, ARGV and reply: see algorithms.lua.
return reply(decide_all())
