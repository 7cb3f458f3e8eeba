-- Before those scripts of a queue that move jobs from order to order. The functions are made where they are needed: most
-- leases need none.
local most_attempts, expire_ms, aging = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
-- Without aging each rank has a band of scores of its own.
local BAND, AT_ONCE, IDS_LOOKED_AT_EVERY = 100000000000000, 100, 3600000
-- Of jobs that are moved. Who buries drops as much.
local MOVED_AT_ONCE = 50
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

-- The leases that ended, and what is due: `most` of both, and whatever has ended a quarter of that is for what is due.
local function all_over(most)
  local function over(order, most)
    return most > 0 and redis.call('ZRANGEBYSCORE', order, '-inf', now_ms, 'LIMIT', 0, most) or {}
  end
  local ended = over(LEASED, most)
  return ended, over(DELAYED, math.max(most - #ended, math.ceil(most / 4)))
end

local function moves()
  local function load(id)
    local kept = redis.call('HGET', JOBS, id)
    return kept and unpacked(kept)
  end

  -- One that is over is dead, also where nobody has noticed yet, but for one that somebody may still be at.
  local function lives(job)
    return job and (job[STATE] == 'a' or (job[STATE] ~= 'd' and not is_over(job)))
  end

  -- Says where the items of a job go: with it, or else by themselves.
  local function is_short(job, items)
    return job[JOINS] == '' and #items <= SHORT
  end

  -- What moves together does so in one command per key, first what takes no room: a script that has written is refused
  -- nothing.
  local closed, left, stood, dropped, apart, sits, jobs = {}, {}, {}, {}, {}, {}, {}
  local entered = {a = {}, b = {}, c = {}, d = {}}
  local moving = {}

  local function append(words, first, second)
    local at = #words
    words[at + 1], words[at + 2] = first, second
  end

  local function flush()
    send('HDEL', DIGEST, closed)
    for state, ids in pairs(left) do
      send('ZREM', ORDER[state], ids)
    end
    send('ZREM', WHO, stood)
    send('HDEL', JOBS, dropped)
    send('HDEL', ITEMS, apart)
    for state, words in pairs(entered) do
      send('ZADD', ORDER[state], words)
    end
    send('ZADD', WHO, sits)
    send('HSET', JOBS, jobs)
    closed, left, stood, dropped, apart, sits, jobs = {}, {}, {}, {}, {}, {}, {}
    entered = {a = {}, b = {}, c = {}, d = {}}
    moving = {}
  end

  -- `kept` is the job as it lies there, where nothing but its state changes.
  local function enter(id, job, state, at, kept)
    job[STATE], job[PLACE] = state, at
    append(entered[state], at, id)
    if state ~= 'd' then
      append(sits, '0', seat(id, job))
    end
    append(jobs, id, kept and changes(job) .. string.sub(kept, REST) or packed(job))
  end

  local function leave(id, job)
    if moving[id] then
      flush()
    end
    moving[id] = true
    local ids = left[job[STATE]] or {}
    left[job[STATE]], ids[#ids + 1] = ids, id
    if job[STATE] ~= 'd' then
      stood[#stood + 1] = seat(id, job)
    end
  end

  local function shut(job)
    if job[JOINS] ~= '' then
      closed[#closed + 1] = job[TO] .. '\0' .. job[JOINS]
      job[JOINS] = ''
    end
  end

  -- The order that its due time says, and its place there.
  local function place_of(job)
    if job[DUE] <= now_ms then
      return 'b', job[DUE] + job[RANK] * (aging > 0 and aging or BAND)
    end
    return 'c', job[DUE]
  end

  -- A number that is whole goes to the server exactly.
  local function settle_in(id, job)
    enter(id, job, place_of(job))
  end

  local function bury(id, job, why)
    leave(id, job)
    shut(job)
    job[ERROR] = why
    enter(id, job, 'd', now_ms)
  end

  -- Calls `act` on the jobs of an order, and moves them; what is no job any more (evicted, against the documentation) is taken
  -- out of it.
  local function each(ids, order, act)
    for index, kept in ipairs(#ids > 0 and redis.call('HMGET', JOBS, unpack(ids)) or {}) do
      if kept then
        act(ids[index], unpacked(kept), kept)
      else
        redis.call('ZREM', order, ids[index])
      end
    end
    flush()
  end

  local function promote(id, job, kept)
    if is_over(job) then
      bury(id, job, 'expired')
      swept[3] = swept[3] + 1
      return
    end
    leave(id, job)
    local state, at = place_of(job)
    enter(id, job, state, at, kept)
  end

  local function reclaim(id, job, kept)
    swept[1] = swept[1] + 1
    if job[TRIES] >= most_attempts then
      bury(id, job, 'the lease of the last attempt ended')
      swept[2] = swept[2] + 1
    else
      promote(id, job, kept)
    end
  end

  local function expire(id, job)
    bury(id, job, 'expired')
    flush()
    swept[3] = swept[3] + 1
  end

  local function expire_if_over(id, job)
    if is_over(job) then
      bury(id, job, 'expired')
      swept[3] = swept[3] + 1
    end
  end

  local function bury_over(ids)
    each(ids, READY, expire_if_over)
  end

  local function drop(id, job)
    leave(id, job)
    shut(job)
    dropped[#dropped + 1] = id
    if job[ITEM] == '' then
      add_pages(apart, id, job[COUNT], job[BYTES])
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
  local function overdue(budget)
    local before, ids = now_ms - expire_ms, {}
    local function add(from, til, ...)
      local most = budget - #ids
      local found = most > 0 and redis.call('ZRANGE', READY, from, til, 'BYSCORE', ...) or {}
      for index = 1, math.min(#found, most) do
        ids[#ids + 1] = found[index]
      end
    end
    add('0', text(before), 'LIMIT', 0, budget)
    for rank = 1, 2 do
      if aging > 0 then
        add(text(before + rank * aging), '(' .. text(before + (rank - 1) * aging), 'REV', 'LIMIT', 0, budget)
      end
      add(text(rank * BAND), text(rank * BAND + before), 'LIMIT', 0, budget)
    end
    if aging > 0 and #ids == budget then
      local known = {}
      for _, id in ipairs(ids) do
        known[id] = true
      end
      -- Steps of the golden ratio come near every place soon, however regularly somebody looks; near the first as near the last.
      local wide = math.ceil(budget / 2)
      local last = math.floor(now_ms % 1000000 * 0.6180339887498949 % 1 * (redis.call('ZCARD', READY) + wide))
      for _, id in ipairs(redis.call('ZRANGE', READY, math.max(last - wide + 1, 0), last)) do
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

  -- Drops dead letters that are too old or too many.
  local function drop_dead(most)
    local dead = most > 0 and redis.call('ZCARD', DEAD) or 0
    if dead == 0 then
      return
    end
    local old = redis.call('ZRANGEBYSCORE', DEAD, '-inf', now_ms - tonumber(ARGV[7]), 'LIMIT', 0, most)
    local spare = dead - tonumber(ARGV[6])
    if spare > #old then
      old = redis.call('ZRANGE', DEAD, 0, math.min(spare, most) - 1)
    end
    each(old, DEAD, drop)
  end

  -- There are never many more dead letters than are kept: who has buried some drops as many that are too many, and one more.
  local function make_up_for_the_dead(buried)
    drop_dead(buried > 0 and buried + 1 - swept[4] or 0)
  end

  local function buried()
    return swept[2] + swept[3]
  end

  -- What may as well be done a little later: nobody gets it meanwhile.
  local function tidy(most)
    local late = most > 1 and overdue(math.ceil(most / 2)) or {}
    bury_over(late)
    drop_dead(buried() == 0 and AT_ONCE or math.max(most, buried() + 1))
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
    local ended, due = all_over(MOVED_AT_ONCE)
    settle(ended, due)
    tidy(MOVED_AT_ONCE - #ended - #due)
  end

  -- Room is made by what is buried, not by what becomes due. Says whether there is some more now.
  local function make_room()
    local late = overdue(MOVED_AT_ONCE)
    bury_over(late)
    settle(all_over(math.max(MOVED_AT_ONCE - #late, 10)))
    make_up_for_the_dead(buried())
    return buried() > 0
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
    load = load, lives = lives, is_short = is_short, leave = leave, place_of = place_of, settle_in = settle_in, expire = expire, bury_over = bury_over, enter = enter, flush = flush,
    settle = settle, tidy = tidy, sweep = sweep, alarm = alarm, ring = ring, waiting = waiting, seats = seats, fits = fits,
    pay_for = pay_for, make_room = make_room, make_up_for_the_dead = make_up_for_the_dead, buried = buried,
  }
end
