-- Before those scripts that end a record. Its head stays for a while, over by every clock, so that the next fence rises over
-- this one: a passed clock may stand still, and the server's be behind after a failover.
local function leave_head(key, head)
  local over = string.sub(head, 1, 76) .. string.rep('\0', 8)
  if redis.pcall('SET', key, over, 'PX', ARGV[1] == '' and 60000 or 600000).err then
    -- A server that is full takes nothing: rather no head than a record that stays.
    redis.call('DEL', key)
  end
end
