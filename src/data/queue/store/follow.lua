-- Adds the jobs of a piece of a part (`promise.lua`) in order; whoever does the last one tells the sleeping. What becomes of each
-- job is kept for the caller of the part, by whoever finds it out.
-- KEYS and ARGV[2..7]: queue.lua; the settings are those of the promise. KEYS: 13 what became of the jobs. ARGV: 8 token of the
-- part, 9 '1' if that is the caller's own, 10 how long its answers wait, ms.
-- Reply: how many pieces are left; after the last the caller's answers (enqueue.lua), or nil where they are gone.
-- A server without room for more does it all the same, since a script that has written is refused nothing.
redis.call('HDEL', PART, '')
local head = redis.call('HGET', PART, 'head')
local left, is_own = redis.call('HLEN', PART) - 1, ARGV[9] == '1'
if not head or token_of(head) ~= ARGV[8] then
  if is_own then
    return redis.call('GET', KEYS[13])
  end
  return 0
end
local _, ready, due
_, now_ms, expire_ms, aging, remember_ms, ready, due, digest_bytes = struct.unpack(HEAD .. 'd', head)
local piece, at = redis.call('HGET', PART, left), 1
while at <= #piece do
  local time, to, item, replaces, window, most, once, digest
  time, to, item, replaces, window, most, once, digest, at = struct.unpack('>c10I4c0I4c0BI8I4Bc0I4c0', piece, at)
  local rank, when = time_of(time, 1)
  wishes[#wishes + 1] = {
    to = to, rank = rank, item = item, once = once, replaces = replaces == 1, due = when,
    name = digest ~= '' and to .. '\0' .. digest, digest = digest, window = window, most = most,
  }
end
look_up()
count_new()
-- Before the last piece they are part of the part: nothing takes one of them away.
head = head .. add_all()
local told = string.sub(head, TOLD)
if left == 1 then
  redis.call('DEL', PART)
  redis.call('SET', KEYS[13], told, 'PX', ARGV[10])
  move.ring({ready == 1, due >= 0 and due or nil})
else
  redis.call('HDEL', PART, left)
  redis.call('HSET', PART, 'head', head)
end
if left == 1 and is_own then
  return told
end
return left - 1
