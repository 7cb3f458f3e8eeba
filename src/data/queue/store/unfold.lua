-- Puts a piece of a part (`commit.lua`) in its place; whoever does the last one tells the sleeping.
-- KEYS and ARGV[2..7]: queue.lua; the settings are those of the commit. No own ARGV.
-- Reply: how many pieces are left, or the token of a part that has to be gone through in order (follow.lua).
-- The jobs are there already: a server without room for more still puts them in their places, since a script that has
-- written is refused nothing.
redis.call('HDEL', PART, '')
local left = redis.call('HLEN', PART) - 1
local head = redis.call('HGET', PART, 'head')
if left < 1 or not head then
  redis.call('DEL', PART)
  return 0
end
if #head > struct.size(HEAD) then
  return token_of(head)
end
local _, remember_ms, ready, due
_, now_ms, expire_ms, aging, remember_ms, ready, due = struct.unpack(HEAD, head)
local piece = redis.call('HGET', PART, left)
local words, times, onces, count = {}, {}, {}, 0
local number, marks, at = struct.unpack('>I8I2c0', piece)
at = at + 2
local index = 0
while at <= #piece do
  local time, to, item, once
  index = index + 1
  time, to, item, once, at = struct.unpack('>c10I4c0I4c0Bc0', piece, at)
  if marks == '' or string.sub(marks, index, index) == '1' then
    count = count + 1
    times[count], onces[count] = time, once ~= '' and once
    words[2 * count - 1], words[2 * count] = to, item
  end
end
add_new(number, count, table.concat(times), words, 1, onces, remember_ms)
move.pay_for(onces)
if left == 1 then
  redis.call('DEL', PART)
  move.ring({ready == 1, due >= 0 and due or nil})
else
  redis.call('HDEL', PART, left)
end
return left - 1
