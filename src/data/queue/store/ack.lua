-- Ends jobs for good, under the token of a lease that runs.
-- KEYS and ARGV[2..7]: queue.lua. ARGV: 8 token, then ids.
-- Reply: {1 done | 0 lost | 2 gone, ...}.
local reply, ids = {}, {}
for index = 9, #ARGV do
  ids[#ids + 1] = ARGV[index]
end
load_all(ids)
for _, id in ipairs(ids) do
  local job = load(id)
  local code = held(job, ARGV[8])
  if code == 1 then
    forget(id, job)
  end
  reply[#reply + 1] = code
end
flush()
return reply
