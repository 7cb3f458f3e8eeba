-- Shows jobs.
-- KEYS and ARGV[2..7]: queue.lua. ARGV: 8 'of' | 'ids' | 'dead', then recipient and most | ids | most.
-- Reply: {{id, recipient, state, rank, attempts, due, error, items}, ...}.
local move = moves()
local sweep = move.sweep
sweep()
local ids = {}
if ARGV[8] == 'of' then
  local start = ARGV[9]
  for _, member in ipairs(redis.call('ZRANGEBYLEX', WHO, '[' .. start .. '\0', '(' .. start .. '\1', 'LIMIT', 0, ARGV[10])) do
    ids[#ids + 1] = string.sub(member, -16)
  end
elseif ARGV[8] == 'dead' then
  if tonumber(ARGV[9]) > 0 then
    ids = redis.call('ZREVRANGE', DEAD, 0, tonumber(ARGV[9]) - 1)
  end
else
  for index = 9, #ARGV do
    ids[#ids + 1] = ARGV[index]
  end
end
local reply = {}
if #ids > 0 then
  local kept = redis.call('HMGET', JOBS, unpack(ids))
  for index, id in ipairs(ids) do
    local job = kept[index] and unpacked(kept[index])
    if job then
      local items = job[ITEM] ~= '' and job[ITEM] or redis.call('HGET', ITEMS, id)
      reply[#reply + 1] = {id, job[TO], job[STATE], job[RANK], job[TRIES], string.format('%.0f', job[DUE]), job[ERROR], items}
    end
  end
end
return reply
