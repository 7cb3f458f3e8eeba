-- Put into a script where a line says so: is the session as it nearly always is? Live for whoever asks, of this version, all
-- its data at hand. Takes h, t and c as `record.lua` lays them out; gives `is_usual`, and the header's numbers.
-- What is not usual is looked at again by `record.lua`, whose functions are made only then: making them takes as long
-- as all that is done for a usual session.
local cut_off = tonumber(redis.call('GET', KEYS[2]) or nil)
local created, authenticated, last, absolute, idle, extended, used, counter, keys, bytes
local is_usual = h and c and not t and #h == 161 and #c == 39 and string.byte(h) == 1 and string.byte(c) == 1
  and string.sub(h, 2, 33) == ARGV[2]
if is_usual then
  created, authenticated, last, absolute, idle, extended, used, counter, keys, bytes =
    struct.unpack('>I8I8I8I8I8I8I8I8I8I8', h, 82)
  is_usual = last + idle > now_ms and absolute > now_ms and (not cut_off or created > cut_off)
    and (keys == 0 or used + extended > now_ms)
end
