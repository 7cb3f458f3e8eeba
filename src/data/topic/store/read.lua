-- Reads events after a place in the log, the oldest first, or the newest only.
-- KEYS[1] log. ARGV: 2 'after' | 'latest', 3 kept ms, 4 most, 5 epoch, 6 seq.
-- Reply: {head epoch, head seq, {epoch, seq, at, payload}, ...} | nil nothing was ever published, or long ago.
local function place(id)
  local epoch, seq = string.match(id, '^(%d+)-(%d+)$')
  return string.format('%.0f', epoch - AHEAD), seq
end

local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if not newest[1] then
  return false
end
local epoch, seq = place(newest[1][1])
local entries = newest
if ARGV[2] ~= 'latest' then
  -- Epochs that no log can have are behind every event.
  local after = string.format('%.0f', math.min(tonumber(ARGV[5]), AHEAD) + AHEAD)
  -- Too old ones are skipped, so all of the log (at most its cap) is looked at.
  entries = redis.call('XRANGE', KEYS[1], '(' .. after .. '-' .. ARGV[6], '+')
end
local reply = {epoch, seq}
for _, entry in ipairs(entries) do
  if #reply >= tonumber(ARGV[4]) + 2 then
    break
  end
  if tonumber(entry[2][2]) + tonumber(ARGV[3]) > now_ms then
    local at_epoch, at_seq = place(entry[1])
    reply[#reply + 1] = {at_epoch, at_seq, entry[2][2], entry[2][4]}
  end
end
return reply
