-- Reads events after a place in the log, the oldest first, or the newest only.
-- KEYS: 1 head, 2 log. ARGV: 2 'after' | 'latest', 3 kept ms, 4 most, 5 epoch, 6 seq.
-- Reply: {head epoch, head seq, {epoch, seq, at, payload}, ...} | nil nothing was ever published, or long ago.
local head = redis.call('GET', KEYS[1])
if not head then
  local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
  head = last and last[1]
end
if not head then
  return false
end
local epoch, seq = string.match(head, '^(%d+)-(%d+)$')
local entries
if ARGV[2] == 'latest' then
  entries = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
else
  -- Too old ones are skipped, so all of the log (at most its cap) is looked at.
  entries = redis.call('XRANGE', KEYS[2], '(' .. ARGV[5] .. '-' .. ARGV[6], '+')
end
local reply = {epoch, seq}
for _, entry in ipairs(entries) do
  if #reply >= tonumber(ARGV[4]) + 2 then
    break
  end
  if tonumber(entry[2][2]) + tonumber(ARGV[3]) > now_ms then
    local at_epoch, at_seq = string.match(entry[1], '^(%d+)-(%d+)$')
    reply[#reply + 1] = {at_epoch, at_seq, entry[2][2], entry[2][4]}
  end
end
return reply
