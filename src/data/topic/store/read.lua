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
local reply, most = {epoch, seq}, tonumber(ARGV[4])
local function add(entries)
  for _, entry in ipairs(entries) do
    if #reply >= most + 2 then
      return
    end
    if tonumber(entry[2][2]) + tonumber(ARGV[3]) > now_ms then
      local at_epoch, at_seq = place(entry[1])
      reply[#reply + 1] = {at_epoch, at_seq, entry[2][2], entry[2][4]}
    end
  end
end

if ARGV[2] == 'latest' then
  add(newest)
  return reply
end
-- Epochs that no log can have are behind every event.
local after = string.format('%.0f', math.min(tonumber(ARGV[5]), AHEAD) + AHEAD) .. '-' .. ARGV[6]
-- In steps, for a log may be much longer than what is asked for; those that are too old are passed over, which ends with
-- the log (at most its cap).
repeat
  local entries = redis.call('XRANGE', KEYS[1], '(' .. after, '+', 'COUNT', most)
  add(entries)
  local last = entries[most]
  after = last and last[1]
until not after or #reply >= most + 2
return reply
