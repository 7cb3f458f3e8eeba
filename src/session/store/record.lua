-- Before every session script, after the shared prelude: how a session is laid out, found and changed.
-- A session is a hash: h header, u user, r roles, c core, i the key of its user's index, d:<name> values
-- (8 bytes version, 1 byte format, JSON). What ended is a hash with t alone: cause, time. What moves to another home
-- of a Cluster is frozen: a whole session with such a t, for 5 s at most.
-- An index is a sorted set of session keys by absolute end, and '!': when the user's mark is forgotten.
local HEADER = '>Bc32c32I8I8I8I8I8I8I8I8I8I8I8I8'
local HEADER_BYTES, CORE_BYTES, TOMBSTONE_BYTES, REMEMBERED = 161, 39, 9, 60000
local SUPERSEDED, REPLAYED, WRONG_SECRET, MISSING, ENDED, NEWER = 1, 2, 3, 4, 5, 6
local FROZEN, FREEZE, MOVED, EVERYONE = 254, 5000, 255, 6
local LARGEST = 9007199254740991

local function parse(key, f)
  local s = { key = key, u = f[3], r = f[4], c = f[5], i = f[6] }
  local _
  _, s.verifier, s.previous, s.replaced, s.generation, s.created, s.authenticated, s.last, s.absolute, s.idle,
    s.extended, s.used, s.counter, s.keys, s.bytes = struct.unpack(HEADER, f[1])
  return s
end

local function header(s)
  return struct.pack(HEADER, 1, s.verifier, s.previous, s.replaced, s.generation, s.created, s.authenticated, s.last,
    s.absolute, s.idle, s.extended, s.used, s.counter, s.keys, s.bytes)
end

local function ends(s) return math.min(s.last + s.idle, s.absolute) end

-- Finds a session that is live for anybody; else nil, why, cause. What is damaged is ended; what a newer
-- version wrote is left alone.
local function find(key, cut_off)
  local f = redis.call('HMGET', key, 'h', 't', 'u', 'r', 'c', 'i')
  if f[2] then
    if #f[2] ~= TOMBSTONE_BYTES then
      redis.call('DEL', key)
      return nil, MISSING, 0
    end
    local cause, at = struct.unpack('>BI8', f[2])
    if cause == FROZEN then
      if now_ms - at < FREEZE then return nil, SUPERSEDED, FROZEN end
    else
      if now_ms - at > REMEMBERED then return nil, MISSING, 0 end
      if cause == MOVED then return nil, SUPERSEDED, 0 end
      return nil, ENDED, cause
    end
  end
  if not f[1] then return nil, MISSING, 0 end
  local format, core = string.byte(f[1]), f[5] and string.byte(f[5])
  if (format or 0) > 1 or (core or 0) > 1 then return nil, NEWER, 0 end
  if format ~= 1 or core ~= 1 or #f[1] ~= HEADER_BYTES or #f[5] ~= CORE_BYTES then
    redis.call('DEL', key)
    return nil, MISSING, 0
  end
  local s = parse(key, f)
  if ends(s) <= now_ms then return nil, MISSING, 0 end
  if cut_off and s.created <= cut_off then return nil, ENDED, EVERYONE end
  return s
end

local function read_cut_off(key) return tonumber(redis.call('GET', key) or nil) end

-- Finds a session that is live for whoever knows its secret. What a newer version wrote is an error, unless the caller
-- tells of it in its own way.
local function find_own(key, verifier, cut_off, tells_newer)
  local s, why, cause = find(key, cut_off)
  if why == NEWER and not tells_newer then error('a newer version wrote this session') end
  if not s then return nil, why, cause end
  if s.verifier == verifier then return s end
  if s.replaced > 0 and s.previous == verifier then
    if now_ms - s.replaced > REMEMBERED then return nil, REPLAYED, 0 end
    return nil, SUPERSEDED, 0
  end
  return nil, WRONG_SECRET, 0
end

local function is_due(recorded, lifetime) return now_ms - recorded > math.min(lifetime / 10, REMEMBERED) end

-- Takes over device and address as far as they are known.
local function see(core, seen)
  local device, address = string.sub(core, 2, 4), string.sub(core, 5, 21)
  if string.byte(seen, 1) ~= 0 then device = string.sub(seen, 1, 3) end
  if string.byte(seen, 4) ~= 0 then address = string.sub(seen, 4, 20) end
  return string.sub(core, 1, 1) .. device .. address .. string.sub(core, 22)
end

-- Records activity if due; returns what was seen before.
local function renew(s, seen)
  if not is_due(s.last, s.idle) then return nil end
  local before = string.sub(s.c, 2, 21)
  s.last = math.max(s.last, now_ms)
  s.c = see(s.c, seen)
  return before
end

local function drop_data(s)
  local names = redis.call('HKEYS', s.key)
  for _, name in ipairs(names) do
    if string.sub(name, 1, 2) == 'd:' then redis.call('HDEL', s.key, name) end
  end
  s.keys, s.bytes = 0, 0
end

local function has_data_run_out(s) return s.keys > 0 and s.used + s.extended <= now_ms end

local function save(s)
  redis.call('HSET', s.key, 'h', header(s), 'c', s.c)
  redis.call('PEXPIRE', s.key, string.format('%.0f', ends(s) - now_ms + REMEMBERED))
end

local function bury(key, cause)
  redis.call('DEL', key)
  redis.call('HSET', key, 't', struct.pack('>BI8', cause, now_ms))
  redis.call('PEXPIRE', key, 2 * REMEMBERED)
end

-- The sessions of a user that are live, the keys of those that only a newer version can read, and of those that
-- are frozen; the index keeps only them.
local function family(index, cut_off)
  redis.call('ZREMRANGEBYSCORE', index, '-inf', now_ms)
  local live, newer, frozen = {}, {}, {}
  for _, key in ipairs(redis.call('ZRANGE', index, 0, -1)) do
    if key ~= '!' then
      local s, why, cause = find(key, cut_off)
      if s and s.i == index then
        live[#live + 1] = s
      elseif why == NEWER then
        newer[#newer + 1] = key
      elseif cause == FROZEN then
        frozen[#frozen + 1] = key
      else
        redis.call('ZREM', index, key)
      end
    end
  end
  return live, newer, frozen
end

-- Logins that began before are overtaken; before `asked`, where that is made up for.
local function mark(index, asked)
  local before = asked and tonumber(redis.call('ZSCORE', index, '!') or nil) or 0
  redis.call('ZADD', index, string.format('%.0f', math.max(before, (asked or now_ms) + REMEMBERED + 1)), '!')
end

local function expire_index(index)
  local latest = redis.call('ZREVRANGE', index, 0, 0, 'WITHSCORES')
  if latest[2] then redis.call('PEXPIRE', index, string.format('%.0f', latest[2] - now_ms + REMEMBERED)) end
end

-- Orders keys of one home by their bytes, whatever the server's locale.
local function is_before(a, b)
  for n = 1, #a do
    local x, y = string.byte(a, n), string.byte(b, n)
    if x ~= y then return x < y end
  end
  return false
end

-- What an increment adds to; nil if it is no integer.
local function integer(entry)
  if not entry or #entry < 9 then return 0 end
  local text = string.sub(entry, 10)
  if string.byte(entry, 9) ~= 0 or #text > 17 then return nil end
  if not (string.match(text, '^%-?[1-9]%d*$') or text == '0' or text == '-0') then return nil end
  local n = tonumber(text)
  return n >= -LARGEST and n <= LARGEST and n or nil
end

-- The entries that `count` operations of the arguments from `at` on are about, by their number.
local function find_entries(key, at, count)
  local found = {}
  -- A piece at a time: Lua takes fewer than 8,000 values from a table at once.
  for first = 1, count, 1000 do
    local names = {}
    for n = first, math.min(first + 999, count) do names[#names + 1] = 'd:' .. ARGV[at + (n - 1) * 4] end
    for n, entry in ipairs(redis.call('HMGET', key, unpack(names))) do found[first + n - 1] = entry end
  end
  return found
end

-- The version of an entry; what is damaged has none, as if it were absent.
local function version_of(entry) return entry and #entry > 8 and struct.unpack('>I8', entry) or 0 end

-- Works out a patch whose arguments begin at `at`: limit, clear, count, then name, kind, version, payload each.
-- Nothing is written: nil and why ('conflict' with entries, 'large', 'number'), or what `write_patch` takes.
local function plan_patch(s, at, is_empty)
  local limit, clear, count = tonumber(ARGV[at]), ARGV[at + 1] == '1', tonumber(ARGV[at + 2])
  local plan = { clear = clear, count = count, set = {}, gone = {} }
  if count == 0 and not clear then return plan end
  local found = is_empty and {} or find_entries(s.key, at + 3, count)
  local conflict = {}
  local is_conflict = false
  for n = 1, count do
    local a = at + 3 + (n - 1) * 4
    if ARGV[a + 1] == 'S' or ARGV[a + 1] == 'R' then
      if version_of(found[n]) ~= tonumber(ARGV[a + 2]) then is_conflict = true end
      if found[n] and #found[n] > 8 then
        conflict[#conflict + 1] = ARGV[a]
        conflict[#conflict + 1] = found[n]
      end
    end
  end
  if is_conflict then return nil, 'conflict', conflict end
  local keys_before, bytes_before = is_empty and 0 or s.keys, is_empty and 0 or s.bytes
  local keys, bytes = clear and 0 or keys_before, clear and 0 or bytes_before
  local version = struct.pack('>I8', s.counter + 1)
  for n = 1, count do
    local a = at + 3 + (n - 1) * 4
    local name, kind, payload = ARGV[a], ARGV[a + 1], ARGV[a + 3]
    local old = not clear and found[n] or nil
    if old then
      keys = keys - 1
      bytes = bytes - #name - math.max(0, #old - 9)
    end
    if kind == 'i' then
      local before = integer(old)
      if not before then return nil, 'number' end
      payload = '\0' .. string.format('%.0f', math.max(-LARGEST, math.min(LARGEST, before + tonumber(payload))))
    end
    if kind == 'r' or kind == 'R' then
      plan.gone[#plan.gone + 1] = 'd:' .. name
    else
      keys = keys + 1
      bytes = bytes + #name + #payload - 1
      plan.set[#plan.set + 1] = { 'd:' .. name, version .. payload }
    end
  end
  -- A damaged entry may be longer than what was counted.
  keys, bytes = math.max(0, keys), math.max(0, bytes)
  if keys > math.max(64, keys_before) or bytes > math.max(limit, bytes_before) then return nil, 'large' end
  plan.keys, plan.bytes = keys, bytes
  return plan
end

-- Writes what `plan_patch` worked out into the hash and the header's counts.
local function write_patch(s, plan)
  if plan.count == 0 and not plan.clear then return end
  if plan.clear then drop_data(s) end
  for _, name in ipairs(plan.gone) do redis.call('HDEL', s.key, name) end
  for _, entry in ipairs(plan.set) do redis.call('HSET', s.key, entry[1], entry[2]) end
  s.keys, s.bytes = plan.keys, plan.bytes
  s.counter = s.counter + 1
  s.used = math.max(s.used, now_ms)
end

-- A session as it is told to the caller.
local function told(s) return { s.key, header(s), s.u or '', s.r or '', s.c } end
