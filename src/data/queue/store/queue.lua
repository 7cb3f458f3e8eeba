-- Before every script of a queue, so that all of them keep jobs in the same way.
-- KEYS: 1 ready (score), 2 delayed (due), 3 leased (end), 4 dead (death), 5 who (recipient NUL state rank place id),
-- 6 jobs, 7 items that are not kept with their job, 8 ids given once (id -> "job until"), 9 those by their end, 10 open
-- digests, 11 the last number, 12 what is left of a part (commit.lua). ARGV: 2 channel, 3 attempts, 4 expire ms,
-- 5 aging ms, 6 dead letters kept, 7 for ms. Own ones from 8.
local READY, DELAYED, LEASED, DEAD, WHO, JOBS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local ITEMS, ONCE, REMEMBER, DIGEST, LAST, PART = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12]
-- A job: recipient, rank, state (a leased, b ready, c delayed, d dead), attempts, due, expires, place in the order of its
-- state, token, digest, error, number of items, their bytes, and the items or ''.
local TO, RANK, STATE, TRIES, DUE, EXPIRES, PLACE, TOKEN, JOINS, ERROR, COUNT, BYTES, ITEM = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13
local ORDER = {a = LEASED, b = READY, c = DELAYED, d = DEAD}
-- Items of more bytes lie by themselves, so that a change of their job does not copy them.
local SHORT = 1024
-- Those of a digest lie in pages, by where they begin, so that what joins does not copy all that is there.
local PAGE = 8192

-- As it is kept: what changes with its state, texts behind their lengths, its items.
local CHANGES, TEXTS = '>c1BI4dddc16', '>I4I4I4c0I4c0I4c0'
local RECORD, REST = CHANGES .. 'I4I4I4c0I4c0I4c0', 47
local NOBODY = string.rep('\0', 16)

-- What changes, as it is kept.
local function changes(job)
  return struct.pack(CHANGES, job[STATE], job[RANK], job[TRIES], job[DUE], job[EXPIRES], job[PLACE], job[TOKEN])
end

local function packed(job)
  return changes(job) .. struct.pack(TEXTS, job[COUNT], job[BYTES], #job[TO], job[TO], #job[JOINS], job[JOINS], #job[ERROR],
    job[ERROR]) .. job[ITEM]
end

local function unpacked(kept)
  local state, rank, tries, due, expires, at, token, items, bytes, to, joins, why, rest = struct.unpack(RECORD, kept)
  return {to, rank, state, tries, due, expires, at, token, joins, why, items, bytes, string.sub(kept, rest)}
end

-- Of a part: no job of it has a place before this one; then what its jobs are added by, and what `alarm` said before.
local HEAD = '>dddddBd'
-- Of one that is gone through in order there follow the bytes of a digest, its token, how many pieces are still to be
-- weighed, within which bounds and with how many attempts of a job, and what became of its jobs until now.
local WEIGHING = '>I2ddd'
local TOKEN_OF_PART = struct.size(HEAD .. 'd') + 1
local WEIGHED = TOKEN_OF_PART + 22
local TOLD = WEIGHED + struct.size(WEIGHING)

local function token_of(head)
  return string.sub(head, TOKEN_OF_PART, WEIGHED - 1)
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

-- The field of the items that begin after so many bytes.
local function page_at(id, bytes)
  local page = math.floor(bytes / PAGE)
  return page == 0 and id or id .. ':' .. page
end

-- Adds to `fields` those in which the items of a job may lie, in order.
local function add_pages(fields, id, count, bytes)
  fields[#fields + 1] = id
  for page = 1, count > 1 and math.floor((bytes - 1) / PAGE) or 0 do
    fields[#fields + 1] = id .. ':' .. page
  end
end

local function close_digest(id, job)
  if job[JOINS] ~= '' then
    redis.call('HDEL', DIGEST, job[TO] .. '\0' .. job[JOINS])
    job[JOINS] = ''
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
