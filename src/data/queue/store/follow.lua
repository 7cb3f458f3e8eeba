-- Goes on with a part of jobs that have to be gone through in order (`promise.lua`): weighs a piece (`weigh.lua`), or adds one;
-- whoever does the last one tells the sleeping. What becomes of each job is kept for the caller of the part, by whoever finds it out.
-- KEYS and ARGV[2..7]: queue.lua; the settings are those of the promise. KEYS: 13 what became of the jobs, 14 weigh.lua. ARGV: 8
-- token of the part, 9 '1' if that is the caller's own, 10 how long its answers wait, ms.
-- Reply: how many steps are left; after the last the caller's answers (enqueue.lua; 'F' no room), or nil where they are gone.
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
local to_weigh, capacity, each
to_weigh, capacity, each, most_attempts = struct.unpack(WEIGHING, head, WEIGHED)
local piece, at = redis.call('HGET', PART, to_weigh > 0 and to_weigh or left), 1
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
local function ended(told)
  redis.call('DEL', PART)
  redis.call('SET', KEYS[13], told, 'PX', ARGV[10])
  return is_own and told or 0
end
if to_weigh > 0 then
  to_weigh = weigh(to_weigh, left, capacity, each)
  if not to_weigh then
    redis.call('DEL', KEYS[14])
    return ended('F')
  end
  local weighing = struct.pack(WEIGHING, to_weigh, capacity, each, most_attempts)
  redis.call('HSET', PART, 'head', string.sub(head, 1, WEIGHED - 1) .. weighing .. string.sub(head, TOLD))
  return left + to_weigh
end
count_new(book())
-- Before the last piece they are part of the part: nothing takes one of them away.
head = head .. add_all()
if left == 1 then
  local reply = ended(string.sub(head, TOLD))
  move.ring({ready == 1, due >= 0 and due or nil})
  return reply
end
redis.call('HDEL', PART, left)
redis.call('HSET', PART, 'head', head)
return left - 1
