-- Before those scripts of a queue that move jobs from order to order. The functions are made where they are needed: most
-- leases need none.
local most_attempts, expire_ms, aging = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
-- Without aging each rank has a band of scores of its own.
local BAND, AT_ONCE, IDS_LOOKED_AT_EVERY = 100000000000000, 100, 3600000
local swept = {0, 0, 0, 0} -- leases that ended, died, expired, dropped

local function is_over(job)
  return now_ms >= job[EXPIRES]
end

local function text(number)
  return string.format('%.0f', number)
end

local function set_due(job, due)
  job[DUE], job[EXPIRES] = due, due + expire_ms
end

local function over(order)
  return redis.call('ZRANGEBYSCORE', order, '-inf', now_ms, 'LIMIT', 0, AT_ONCE)
end

local function moves()
  local function load(id)
    local kept = redis.call('HGET', JOBS, id)
    return kept and unpacked(kept)
  end

  -- Says where the items of a job go: with it, or else by themselves.
  local function is_short(job, items)
    return job[JOINS] == '' and #items <= SHORT
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
      return 'b', job[DUE] + job[RANK] * (aging > 0 and aging or BAND)
    end
    return 'c', job[DUE]
  end

  local function settle_in(id, job)
    -- A number that is whole goes to the server exactly.
    enter(id, job, place_of(job))
  end

  local function bury(id, job, why)
    leave(id, job)
    close_digest(id, job)
    if why ~= '' then
      job[ERROR] = why
    end
    enter(id, job, 'd', now_ms)
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
    elseif is_over(job) then
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
    bury(id, job, 'expired')
    swept[3] = swept[3] + 1
  end

  local function expire_if_over(id, job)
    if is_over(job) then
      expire(id, job)
    end
  end

  local function drop(id, job)
    leave(id, job)
    close_digest(id, job)
    redis.call('HDEL', JOBS, id)
    if job[ITEM] == '' then
      redis.call('HDEL', ITEMS, id)
    end
    swept[4] = swept[4] + 1
  end

  -- One command per key.
  local function forget_ids(most)
    local onces = redis.call('ZRANGEBYSCORE', REMEMBER, '-inf', now_ms, 'LIMIT', 0, most)
    if #onces == 0 then
      return
    end
    -- Nothing happens by this, but a script that has written is refused nothing where there is no room: what waits is worked
    -- off all the same.
    redis.call('HDEL', ONCE, '')
    local ids, later, known, gone = {}, now_ms + IDS_LOOKED_AT_EVERY, {}, {}
    for index, kept in ipairs(redis.call('HMGET', ONCE, unpack(onces))) do
      ids[index] = kept and string.match(kept, '^(%x+) ') or ''
    end
    for index, kept in ipairs(redis.call('HMGET', JOBS, unpack(ids))) do
      if kept then
        -- The id is known for as long as its job lives: look again when that may be over. A dead letter may live again, and
        -- where there are too many is dropped before its time.
        local state, _, _, _, expires = struct.unpack(CHANGES, kept)
        known[#known + 1] = text(state == 'd' and later or math.max(later, expires))
        known[#known + 1] = onces[index]
      else
        gone[#gone + 1] = onces[index]
      end
    end
    send('ZADD', REMEMBER, known)
    send('ZREM', REMEMBER, gone)
    send('HDEL', ONCE, gone)
  end

  -- Ready ones that may be over, if they were given as long as the settings say. Within a rank they come first. With
  -- aging those of a lower rank stand among younger ones of higher ranks, the oldest last; where more stand there than are
  -- looked at, a part of the whole order is looked at as well, at another time another one.
  local function overdue()
    local before, ids = now_ms - expire_ms, {}
    local function add(from, til, ...)
      local most = AT_ONCE - #ids
      local found = most > 0 and redis.call('ZRANGE', READY, from, til, 'BYSCORE', ...) or {}
      for index = 1, math.min(#found, most) do
        ids[#ids + 1] = found[index]
      end
    end
    add('0', text(before), 'LIMIT', 0, AT_ONCE)
    for rank = 1, 2 do
      if aging > 0 then
        add(text(before + rank * aging), '(' .. text(before + (rank - 1) * aging), 'REV', 'LIMIT', 0, AT_ONCE)
      end
      add(text(rank * BAND), text(rank * BAND + before), 'LIMIT', 0, AT_ONCE)
    end
    if aging > 0 and #ids == AT_ONCE then
      local known = {}
      for _, id in ipairs(ids) do
        known[id] = true
      end
      -- Steps of the golden ratio come near every place soon, however regularly somebody looks.
      local first = math.floor(now_ms % 1000000 * 0.6180339887498949 % 1 * redis.call('ZCARD', READY))
      for _, id in ipairs(redis.call('ZRANGE', READY, first, first + AT_ONCE / 2 - 1)) do
        if not known[id] then
          ids[#ids + 1] = id
        end
      end
    end
    return ids
  end

  -- Moves leases that have ended, and what is due.
  local function settle(ended, due)
    each(ended, LEASED, reclaim)
    each(due, DELAYED, promote)
  end

  -- What may as well be done a little later: nobody gets it meanwhile.
  local function tidy()
    each(overdue(), READY, expire_if_over)
    local dead = redis.call('ZCARD', DEAD)
    if dead > 0 then
      local old = redis.call('ZRANGEBYSCORE', DEAD, '-inf', now_ms - tonumber(ARGV[7]), 'LIMIT', 0, AT_ONCE)
      local spare = dead - tonumber(ARGV[6])
      if spare > #old then
        old = redis.call('ZRANGE', DEAD, 0, math.min(spare, AT_ONCE) - 1)
      end
      each(old, DEAD, drop)
    end
    forget_ids(AT_ONCE)
  end

  -- Who brings ids looks at four for each, together at one in eight of them: leases alone do not keep up, since each item of a
  -- digest leaves an id, and a cancelled job one that nobody leases.
  local function pay_for(ids)
    local due = 0
    for _, once in pairs(ids) do
      due = due + (once and string.byte(once) % 8 == 0 and 32 or 0)
    end
    if due > 0 then
      forget_ids(math.min(due, 128))
    end
  end

  local function sweep()
    settle(over(LEASED), over(DELAYED))
    tidy()
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
      redis.pcall('PUBLISH', ARGV[2], '')
    end
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

  return {
    load = load, is_short = is_short, leave = leave, place_of = place_of, settle_in = settle_in, expire = expire,
    settle = settle, tidy = tidy, sweep = sweep, alarm = alarm, ring = ring, waiting = waiting, fits = fits,
    pay_for = pay_for,
  }
end
