-- Removes jobs of a recipient that are neither leased nor dead.
-- KEYS and ARGV[2..7]: queue.lua. ARGV: 8 recipient, then ids.
-- Reply: the ids of those.
local reply = {}
for index = 9, #ARGV do
  local id = ARGV[index]
  local job = load(id)
  if job and job[TO] == ARGV[8] and (job[STATE] == 'b' or job[STATE] == 'c') then
    forget(id, job)
    reply[#reply + 1] = id
  end
end
return reply
