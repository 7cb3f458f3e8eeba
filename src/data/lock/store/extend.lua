-- Moves the end of a lock that is still its owner's.
-- KEYS[1] lock (see acquire). ARGV: 2 owner, 3 lease ms, 4 lease and keep ms.
-- Reply: 1 extended | 0 lost.
local kept = redis.call('GET', KEYS[1])
if not kept then
  return 0
end
local fence, ends, state, owner = struct.unpack('>I8I8Bc16', kept)
if owner ~= ARGV[2] or now_ms >= ends then
  return 0
end
redis.call('SET', KEYS[1], struct.pack('>I8I8B', fence, now_ms + tonumber(ARGV[3]), state) .. owner, 'PX', ARGV[4])
return 1
