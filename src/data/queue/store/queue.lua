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

-- Writes are gathered, the last word on each member counts, and they go out in one command per key and kind: a call of
-- the server costs more than all that Lua does between two of them. So a sorted set is read by `ask`; jobs and the
-- fields of hashes are seen as they will be. Every script ends with `flush`.
local HASH = {[ITEMS] = true, [JOBS] = true, [ONCE] = true, [DIGEST] = true}
local gathered, is_gathered = {}, false
local loaded, changed = {}, {}
local MOST_WORDS = 1000

local function put(key, member, value)
  local members = gathered[key]
  if not members then
    members = {}
    gathered[key] = members
  end
  members[member], is_gathered = value, true
end

local function keep(id, job)
  loaded[id], changed[id], is_gathered = job, job, true
end

local function send(command, key, words)
  for first = 1, #words, MOST_WORDS do
    redis.call(command, key, unpack(words, first, math.min(first + MOST_WORDS - 1, #words)))
  end
end

local function flush()
  if not is_gathered then
    return
  end
  for id, job in pairs(changed) do
    put(JOBS, id, cmsgpack.pack(job))
  end
  for key, members in pairs(gathered) do
    local is_hash, set, gone, at, left = HASH[key], {}, {}, 0, 0
    for member, value in pairs(members) do
      if value == false then
        left = left + 1
        gone[left] = member
      else
        -- A score that is a whole number goes to the server exactly.
        set[at + 1], set[at + 2] = is_hash and member or value, is_hash and value or member
        at = at + 2
      end
    end
    send(is_hash and 'HDEL' or 'ZREM', key, gone)
    send(is_hash and 'HSET' or 'ZADD', key, set)
  end
  gathered, changed, is_gathered = {}, {}, false
end

local function ask(...)
  flush()
  return redis.call(...)
end

-- A field of a hash; `false` where there is none.
local function field(key, name)
  local value = gathered[key] and gathered[key][name]
  if value == nil then
    return redis.call('HGET', key, name)
  end
  return value
end

-- The fields of a hash, as the server has them.
local function fields(key, names)
  local values = {}
  for first = 1, #names, MOST_WORDS do
    local last = math.min(first + MOST_WORDS - 1, #names)
    for index, value in ipairs(redis.call('HMGET', key, unpack(names, first, last))) do
      values[first + index - 1] = value
    end
  end
  return values
end

local function items_of(ids)
  flush()
  return fields(ITEMS, ids)
end

local function load_all(ids)
  local unknown = {}
  for _, id in ipairs(ids) do
    if loaded[id] == nil then
      unknown[#unknown + 1] = id
    end
  end
  for index, packed in ipairs(fields(JOBS, unknown)) do
    loaded[unknown[index]] = packed and cmsgpack.unpack(packed)
  end
end

local function load(id)
  if loaded[id] == nil then
    load_all({id})
  end
  return loaded[id]
end

local function seat(id, job)
  return job[TO] .. '\0' .. job[STATE] .. job[RANK] .. string.format('%016.0f', job[PLACE]) .. id
end

local function enter(id, job, state, place)
  job[STATE], job[PLACE] = state, place
  put(ORDER[state], id, place)
  if state ~= 'd' then
    put(WHO, seat(id, job), 0)
  end
  keep(id, job)
end

local function leave(id, job)
  put(ORDER[job[STATE]], id, false)
  if job[STATE] ~= 'd' then
    put(WHO, seat(id, job), false)
  end
end

-- Where its due time says.
local function settle_in(id, job)
  put(EXPIRY, id, job[EXPIRES])
  if job[DUE] <= now_ms then
    enter(id, job, 'b', job[DUE] + job[RANK] * (aging > 0 and aging or 100000000000000))
  else
    enter(id, job, 'c', job[DUE])
  end
end

local function set_due(job, due)
  job[DUE], job[EXPIRES] = due, due + expire_ms
end

local function close_digest(id, job)
  if job[JOINS] ~= '' then
    put(DIGEST, job[TO] .. '\0' .. job[JOINS], false)
    job[JOINS] = ''
  end
end

local function forget(id, job)
  leave(id, job)
  close_digest(id, job)
  put(EXPIRY, id, false)
  put(ITEMS, id, false)
  put(JOBS, id, false)
  loaded[id], changed[id] = false, nil
end

local function bury(id, job, why)
  leave(id, job)
  close_digest(id, job)
  if why ~= '' then
    job[ERROR] = why
  end
  put(EXPIRY, id, false)
  enter(id, job, 'd', now_ms)
end

local function over(order)
  return ask('ZRANGEBYSCORE', order, '-inf', now_ms, 'LIMIT', 0, AT_ONCE)
end

-- The job of an id that was given once, while it lives and for as long as the id is remembered.
local function known(once)
  local kept = field(ONCE, once)
  if not kept then
    return nil
  end
  local id, til = string.match(kept, '^(%x+) (%d+)$')
  local job = load(id)
  if (job and job[STATE] ~= 'd') or now_ms < tonumber(til) then
    return id, job
  end
  return nil
end

-- Calls `act` on the jobs of an order; what is no job any more (evicted, against the documentation) is taken out of it.
local function each(ids, order, act)
  load_all(ids)
  for _, id in ipairs(ids) do
    local job = load(id)
    if job then
      act(id, job)
    else
      put(order, id, false)
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
    put(EXPIRY, id, false)
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
    local id = string.match(field(ONCE, once) or '', '^(%x+) ')
    local job = id and load(id)
    if job and job[STATE] ~= 'd' then
      -- The id is known for as long as its job lives: look again when that may be over.
      put(REMEMBER, once, math.max(job[EXPIRES], now_ms + 1000))
    else
      put(REMEMBER, once, false)
      put(ONCE, once, false)
    end
  end
end

local function sweep()
  each(over(LEASED), LEASED, reclaim)
  each(over(DELAYED), DELAYED, promote)
  each(over(EXPIRY), EXPIRY, expire)
  local dead = ask('ZCARD', DEAD)
  if dead > 0 then
    local old = ask('ZRANGEBYSCORE', DEAD, '-inf', now_ms - tonumber(ARGV[7]), 'LIMIT', 0, AT_ONCE)
    local spare = dead - tonumber(ARGV[6])
    if spare > #old then
      old = ask('ZRANGE', DEAD, 0, math.min(spare, AT_ONCE) - 1)
    end
    each(old, DEAD, drop)
  end
  forget_ids()
end

-- What an idle worker waits for: something ready, else the first due time.
local function alarm()
  local first = ask('ZRANGE', DELAYED, 0, 0, 'WITHSCORES')
  return {ask('ZCARD', READY) > 0, tonumber(first[2])}
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
  return ask('HLEN', JOBS) - ask('ZCARD', DEAD)
end

local function seats(recipient)
  return ask('ZLEXCOUNT', WHO, '[' .. recipient .. '\0', '(' .. recipient .. '\1')
end

-- Whether `new` more jobs fit, `of` them by recipient.
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
  for recipient, more in pairs(of) do
    if seats(recipient) + more > each then
      return false
    end
  end
  return true
end
