-- Before every script of a queue, so that all of them move jobs in the same way.
-- KEYS: 1 ready (score), 2 delayed (due), 3 leased (end), 4 expiry, 5 dead (death), 6 who (recipient NUL state rank
-- place id), 7 items, 8 jobs, 9 ids given once (id -> "job until"), 10 those by their end, 11 open digests, 12 the
-- last number. ARGV: 2 channel, 3 attempts, 4 expire ms, 5 aging ms, 6 dead letters kept, 7 for ms. Own ones from 8.
local READY, DELAYED, LEASED, EXPIRY, DEAD, WHO = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local ITEMS, JOBS, ONCE, REMEMBER, DIGEST, LAST = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local most_attempts, expire_ms, aging = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
-- A job: recipient, rank, state (a leased, b ready, c delayed, d dead), attempts, due, expires, place in the order of
-- its state, token, digest, error, number of items, their bytes.
local TO, RANK, STATE, TRIES, DUE, EXPIRES, PLACE, TOKEN, JOINS, ERROR, COUNT, BYTES = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
local ORDER = {a = LEASED, b = READY, c = DELAYED, d = DEAD}
local AT_ONCE = 100
local swept = {0, 0, 0, 0} -- leases that ended, died, expired, dropped

-- As it is kept: texts behind their lengths.
local RECORD = '>c1BI4dddBc0I4c0I4c0I4I4I4c0'

local function packed(job)
  return struct.pack(RECORD, job[STATE], job[RANK], job[TRIES], job[DUE], job[EXPIRES], job[PLACE], #job[TOKEN], job[TOKEN],
    #job[JOINS], job[JOINS], #job[ERROR], job[ERROR], job[COUNT], job[BYTES], #job[TO], job[TO])
end

local function unpacked(kept)
  local state, rank, tries, due, expires, at, token, joins, why, items, bytes, to = struct.unpack(RECORD, kept)
  return {to, rank, state, tries, due, expires, at, token, joins, why, items, bytes}
end

local function load(id)
  local kept = redis.call('HGET', JOBS, id)
  return kept and unpacked(kept)
end

local function send(command, key, words)
  if #words > 0 then
    redis.call(command, key, unpack(words))
  end
end

-- Most jobs of one call have one place.
local place, place_text
local function seat(id, job)
  if job[PLACE] ~= place then
    place, place_text = job[PLACE], string.format('%016.0f', job[PLACE])
  end
  return job[TO] .. '\0' .. job[STATE] .. job[RANK] .. place_text .. id
end

local function enter(id, job, state, at)
  job[STATE], job[PLACE] = state, at
  redis.call('ZADD', ORDER[state], at, id)
  if state ~= 'd' then
    redis.call('ZADD', WHO, 0, seat(id, job))
  end
  redis.call('HSET', JOBS, id, packed(job))
end

local function leave(id, job)
  redis.call('ZREM', ORDER[job[STATE]], id)
  if job[STATE] ~= 'd' then
    redis.call('ZREM', WHO, seat(id, job))
  end
end

-- The order that its due time says, and its place there.
local function place_of(job)
  if job[DUE] <= now_ms then
    return 'b', job[DUE] + job[RANK] * (aging > 0 and aging or 100000000000000)
  end
  return 'c', job[DUE]
end

local function settle_in(id, job)
  -- A number that is whole goes to the server exactly.
  redis.call('ZADD', EXPIRY, job[EXPIRES], id)
  enter(id, job, place_of(job))
end

local function set_due(job, due)
  job[DUE], job[EXPIRES] = due, due + expire_ms
end

local function close_digest(id, job)
  if job[JOINS] ~= '' then
    redis.call('HDEL', DIGEST, job[TO] .. '\0' .. job[JOINS])
    job[JOINS] = ''
  end
end

local function forget(id, job)
  leave(id, job)
  close_digest(id, job)
  redis.call('ZREM', EXPIRY, id)
  redis.call('HDEL', ITEMS, id)
  redis.call('HDEL', JOBS, id)
end

local function bury(id, job, why)
  leave(id, job)
  close_digest(id, job)
  if why ~= '' then
    job[ERROR] = why
  end
  redis.call('ZREM', EXPIRY, id)
  enter(id, job, 'd', now_ms)
end

local function over(order)
  return redis.call('ZRANGEBYSCORE', order, '-inf', now_ms, 'LIMIT', 0, AT_ONCE)
end

-- Calls `act` on the jobs of an order; what is no job any more (evicted, against the documentation) is taken out of it.
local function each(ids, order, act)
  for _, id in ipairs(ids) do
    local job = load(id)
    if job then
      act(id, job)
    else
      redis.call('ZREM', order, id)
    end
  end
end

local function reclaim(id, job)
  swept[1] = swept[1] + 1
  if job[TRIES] >= most_attempts then
    bury(id, job, 'the lease of the last attempt ended')
    swept[2] = swept[2] + 1
  elseif now_ms >= job[EXPIRES] then
    bury(id, job, 'expired')
    swept[3] = swept[3] + 1
  else
    leave(id, job)
    settle_in(id, job)
  end
end

local function promote(id, job)
  leave(id, job)
  settle_in(id, job)
end

local function expire(id, job)
  if job[STATE] == 'a' then
    -- Looked at again when its lease ends.
    redis.call('ZREM', EXPIRY, id)
  else
    bury(id, job, 'expired')
    swept[3] = swept[3] + 1
  end
end

local function drop(id, job)
  forget(id, job)
  swept[4] = swept[4] + 1
end

local function forget_ids()
  for _, once in ipairs(over(REMEMBER)) do
    local id = string.match(redis.call('HGET', ONCE, once) or '', '^(%x+) ')
    local job = id and load(id)
    if job and job[STATE] ~= 'd' then
      -- The id is known for as long as its job lives: look again when that may be over.
      redis.call('ZADD', REMEMBER, string.format('%.0f', math.max(job[EXPIRES], now_ms + 1000)), once)
    else
      redis.call('ZREM', REMEMBER, once)
      redis.call('HDEL', ONCE, once)
    end
  end
end

local function sweep()
  each(over(LEASED), LEASED, reclaim)
  each(over(DELAYED), DELAYED, promote)
  each(over(EXPIRY), EXPIRY, expire)
  local dead = redis.call('ZCARD', DEAD)
  if dead > 0 then
    local old = redis.call('ZRANGEBYSCORE', DEAD, '-inf', now_ms - tonumber(ARGV[7]), 'LIMIT', 0, AT_ONCE)
    local spare = dead - tonumber(ARGV[6])
    if spare > #old then
      old = redis.call('ZRANGE', DEAD, 0, math.min(spare, AT_ONCE) - 1)
    end
    each(old, DEAD, drop)
  end
  forget_ids()
end

-- What an idle worker waits for: something ready, else the first due time.
local function alarm()
  local first = redis.call('ZRANGE', DELAYED, 0, 0, 'WITHSCORES')
  return {redis.call('ZCARD', READY) > 0, tonumber(first[2])}
end

local function ring(before)
  if before[1] then
    return
  end
  local after = alarm()
  if after[1] or (after[2] and (not before[2] or after[2] < before[2])) then
    redis.call('PUBLISH', ARGV[2], '')
  end
end

-- Says whether a job is leased under `token`: 1 yes, 0 no, 2 there is none.
local function held(job, token)
  if not job then
    return 2
  end
  if job[STATE] == 'a' and job[TOKEN] == token and now_ms < job[PLACE] then
    return 1
  end
  return 0
end

local function waiting()
  return redis.call('HLEN', JOBS) - redis.call('ZCARD', DEAD)
end

local function seats(recipient)
  return redis.call('ZLEXCOUNT', WHO, '[' .. recipient .. '\0', '(' .. recipient .. '\1')
end

-- Whether `new` more jobs fit; `of` tells how many of them are whose.
local function fits(new, of, capacity, each)
  if new == 0 then
    return true
  end
  local all = waiting() + new
  if all > capacity then
    return false
  end
  if all <= each then
    -- No recipient can have more than there are.
    return true
  end
  for recipient, more in pairs(of()) do
    if seats(recipient) + more > each then
      return false
    end
  end
  return true
end
