-- Says who has a lock, and changes nothing.
-- KEYS[1] lock (see acquire).
-- Reply: {fence, ms left} | nil.
local kept = redis.call('GET', KEYS[1])
if not kept then
  return false
end
local fence, ends = struct.unpack('>I8I8', kept)
if now_ms >= ends then
  return false
end
return {string.format('%.0f', fence), string.format('%.0f', ends - now_ms)}
