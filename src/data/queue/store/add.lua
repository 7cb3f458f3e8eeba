-- Before those scripts of a queue that add jobs: the time and size of what is added, and how jobs are added that are all
-- new. Its `moves`: what is moved is moved there.
local move = moves()

-- An item, its length and what else a digest keeps of it.
local function size_of(item)
  return #item + 28
end

-- Of 10 bytes for each job: its rank, and when it is due.
local function time_of(times, index)
  local rank, absolute, ms = struct.unpack('>BBI8', times, 10 * index - 9)
  return rank, absolute == 1 and math.max(ms, now_ms) or now_ms + ms
end

-- Adds jobs, from `first` on recipient and item of each in turn. Most of one call have the same time, and much else in
-- common: each is put together of parts that are made once. Returns the first id; the others follow.
local function add_new(number, count, times, words, first, onces, remember_ms)
  local first_id = string.format('%016x', number)
  local apart, kept, ready, delayed, seats, given, remembered = {}, {}, {}, {}, {}, {}, {}
  local til = string.format('%.0f', now_ms + remember_ms)
  local job, time, digits, of_size, of_recipient = {'', '', 'b', 0, 0, 0, 0, NOBODY}, '', nil, {}, {}
  local order, start, middle, score
  for index = 1, count do
    local at, word = 2 * index - 1, first + 2 * (index - 1)
    local to, item = words[word], words[word + 1]
    local last = number % 16
    if last == 0 or not digits then
      digits = string.format('%015x', math.floor(number / 16))
    end
    number = number + 1
    local id = digits .. string.sub('0123456789abcdef', last + 1, last + 1)
    if string.sub(times, 10 * index - 9, 10 * index) ~= time then
      time = string.sub(times, 10 * index - 9, 10 * index)
      local rank, due = time_of(times, index)
      job[RANK] = rank
      set_due(job, due)
      job[STATE], job[PLACE] = move.place_of(job)
      order = job[STATE] == 'b' and ready or delayed
      start, score = changes(job), string.format('%016.0f', job[PLACE])
      middle = '\0' .. job[STATE] .. job[RANK] .. score
    end
    local size, recipient = of_size[#item], of_recipient[to]
    if not size then
      size = struct.pack('>I4I4', 1, size_of(item))
      of_size[#item] = size
    end
    if not recipient then
      recipient = struct.pack('>I4c0I4I4', #to, to, 0, 0)
      of_recipient[to] = recipient
    end
    kept[at] = id
    if #item > SHORT then
      apart[#apart + 1], apart[#apart + 2] = id, item
      kept[at + 1] = start .. size .. recipient
    else
      kept[at + 1] = start .. size .. recipient .. item
    end
    order[#order + 1], order[#order + 2] = score, id
    seats[at], seats[at + 1] = '0', to .. middle .. id
    local once = onces[index]
    if once then
      given[#given + 1], given[#given + 2] = once, id .. ' ' .. til
      remembered[#remembered + 1], remembered[#remembered + 2] = til, once
    end
  end
  send('HSET', JOBS, kept)
  send('HSET', ITEMS, apart)
  send('ZADD', READY, ready)
  send('ZADD', DELAYED, delayed)
  send('ZADD', WHO, seats)
  send('HSET', ONCE, given)
  send('ZADD', REMEMBER, remembered)
  return first_id
end
