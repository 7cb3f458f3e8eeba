-- Moves the end of leases.
-- KEYS and ARGV[2..7]: queue.lua. ARGV: 8 token, 9 lease ms, then ids.
-- Reply: {1 done | 0 lost | 2 gone, ...}.
local reply = {}
for index = 10, #ARGV do
  local id = ARGV[index]
  local job = load(id)
  local code = held(job, ARGV[8])
  if code == 1 then
    leave(id, job)
    enter(id, job, 'a', now_ms + tonumber(ARGV[9]))
  end
  reply[#reply + 1] = code
end
return reply
