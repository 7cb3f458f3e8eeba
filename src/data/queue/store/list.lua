-- Shows jobs.
-- KEYS and ARGV[2..7]: queue.lua. ARGV: 8 most bytes of items beyond the first job's, 9 'of' | 'ids' | 'dead', then recipient
-- and most | ids | most.
-- Reply: {{id, recipient, state, rank, attempts, due, error, items or pages of them}, ..., and the ids of those that are too much for one answer}.
local MOST = 256
local move = moves()
local sweep = move.sweep
sweep()
local ids = {}
if ARGV[9] == 'of' then
  local start = ARGV[10]
  for _, member in ipairs(redis.call('ZRANGEBYLEX', WHO, '[' .. start .. '\0', '(' .. start .. '\1', 'LIMIT', 0, ARGV[11])) do
    ids[#ids + 1] = string.sub(member, -16)
  end
elseif ARGV[9] == 'dead' then
  if tonumber(ARGV[10]) > 0 then
    ids = redis.call('ZREVRANGE', DEAD, 0, tonumber(ARGV[10]) - 1)
  end
else
  for index = 10, #ARGV do
    ids[#ids + 1] = ARGV[index]
  end
end
local reply, bytes, apart, owners = {}, 0, {}, {}
local kept = #ids > 0 and redis.call('HMGET', JOBS, unpack(ids, 1, math.min(MOST, #ids))) or {}
local rest = #kept + 1
for index, text in ipairs(kept) do
  local job = text and unpacked(text)
  if job then
    bytes = bytes + job[BYTES]
    if bytes > tonumber(ARGV[8]) and #reply > 0 then
      rest = index
      break
    end
    local shown = {ids[index], job[TO], job[STATE], job[RANK], job[TRIES], string.format('%.0f', job[DUE]), job[ERROR], job[ITEM]}
    reply[#reply + 1] = shown
    if job[ITEM] == '' then
      add_pages(apart, ids[index], job[COUNT], job[BYTES])
      while #owners < #apart do
        owners[#owners + 1] = shown
      end
      shown[8] = {}
    end
  end
end
for index, items in ipairs(#apart > 0 and redis.call('HMGET', ITEMS, unpack(apart)) or {}) do
  local pages = owners[index][8]
  pages[#pages + 1] = items or nil
end
for index = rest, #ids do
  reply[#reply + 1] = ids[index]
end
return reply
