-- Frees a lock if it is its owner's, keeps its fence, and wakes whoever waits.
-- KEYS[1] lock (see acquire). ARGV: 2 owner, 3 keep ms, 4 channel.
-- Reply: 1 released, now or by an earlier try | 0 it was lost before.
local kept = redis.call('GET', KEYS[1])
if not kept then
  return 0
end
local fence, ends, state, owner = struct.unpack('>I8I8Bc16', kept)
if owner ~= ARGV[2] then
  return 0
end
if ends == 0 then
  -- The reply to an earlier try may have been lost.
  return state == 2 and 1 or 0
end
local held = now_ms < ends
-- The key lives on for as long as its fence is to be known.
local free = struct.pack('>I8I8B', fence, 0, held and 2 or 3) .. owner
if redis.pcall('SET', KEYS[1], free, 'PX', ARGV[3]).err then
  -- A server that is full takes nothing new, but goes on with what has begun by giving room.
  redis.call('DEL', KEYS[1])
  redis.pcall('SET', KEYS[1], free, 'PX', ARGV[3])
end
if state == 1 then
  redis.pcall('PUBLISH', ARGV[4], '')
end
return held and 1 or 0
