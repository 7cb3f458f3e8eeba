-- Before `follow.lua`: near the bounds of its queue a part is weighed, a piece at a time, before anything of it is added. Until
-- it is added or refused nothing else enters the queue, and what is there only becomes less: what fits once fits then, too.
-- KEYS: 14 what was counted until now. Its fields: 'all'; behind 'of' a recipient, behind 'id' an id given once, behind 'in' the
-- name of a digest.
local ALL, OPENED, COLLECTING = '>I2I4I4', '>I4I4', '>I4I4d'
local book_key = KEYS[14]

-- What is kept is read where it is asked for, once: it changes here.
local function kept_as(kind, decode)
  return setmetatable({}, {__index = function(known, name)
    local kept = redis.call('HGET', book_key, kind .. name)
    if kept then
      rawset(known, name, decode(kept))
      return rawget(known, name)
    end
    return nil
  end})
end

local function book_of_part(new, opened)
  local function digest_of_id(kept)
    if kept == '' then
      return {}
    end
    local number, length = struct.unpack(OPENED, kept)
    local name = string.sub(kept, 9)
    return {to = string.sub(name, 1, length), name = name, number = number}
  end
  local function open_digest(kept)
    if kept == '' then
      return false
    end
    local number, items, bytes = struct.unpack(COLLECTING, kept)
    return {items = items, bytes = bytes, number = number}
  end
  return {
    new = new, opened = opened,
    of = kept_as('of', tonumber), ids = kept_as('id', digest_of_id), open = kept_as('in', open_digest),
  }
end

local function keep_book(counted, at)
  local words = {'all', struct.pack(ALL, at, counted.new, counted.opened)}
  local function put(field, value)
    words[#words + 1], words[#words + 2] = field, value
  end
  for recipient, count in pairs(counted.of) do
    put('of' .. recipient, count)
  end
  for once, digest in pairs(counted.ids) do
    put('id' .. once, digest.name and struct.pack(OPENED, digest.number, #digest.to) .. digest.name or '')
  end
  for name, digest in pairs(counted.open) do
    put('in' .. name, digest and struct.pack(COLLECTING, digest.number, digest.items, digest.bytes) or '')
  end
  redis.call('HSET', book_key, unpack(words))
  redis.call('PEXPIRE', book_key, ARGV[10])
end

-- Weighs the piece `at` of `pieces`, which is what is wished. Says which comes next, 0 none; nil if there is no room.
local function weigh(at, pieces, capacity, each)
  local before, new, opened = pieces, 0, 0
  if at == pieces then
    redis.call('DEL', book_key)
  else
    local all = redis.call('HGET', book_key, 'all')
    before, new, opened = struct.unpack(ALL, all or struct.pack(ALL, 0, 0, 0))
    if before ~= at then
      -- It is gone: once more from the first.
      return pieces
    end
  end
  local counted = book_of_part(new, opened)
  count_new(counted)
  if not move.fits(counted.new, function() return counted.of end, capacity, each) then
    return move.make_room() and pieces or nil
  end
  if at > 1 then
    keep_book(counted, at - 1)
  else
    redis.call('DEL', book_key)
  end
  return at - 1
end
