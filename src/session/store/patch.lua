-- Changes data of a live session: all operations or none.
-- KEYS: session, cut-off. ARGV from 2: verifier, what was seen, then the patch as `plan_patch` takes it.
-- Reply: {0, version, what was seen before a renewal (else '')}, {1, why, cause}, {2, {name, entry…}} for a conflict, {3} too large, {4} no number.
local limit, count = tonumber(ARGV[4]), tonumber(ARGV[6])
-- A few values that are set whatever was there.
local is_plain = ARGV[5] == '0' and count > 0 and count <= 8
local names = { 'h', 't', 'c' }
if is_plain then
  for n = 1, count do
    names[n + 3] = 'd:' .. ARGV[n * 4 + 3]
    if ARGV[n * 4 + 4] ~= 's' then is_plain = false end
  end
end
if is_plain then
  local found = redis.call('HMGET', KEYS[1], unpack(names))
  local h, t, c = found[1], found[2], found[3]
  --> usual
  if is_usual and now_ms - last <= math.min(idle / 10, 60000) then
    local most_keys, most_bytes = math.max(64, keys), math.max(limit, bytes)
    local version, changes = struct.pack('>I8', counter + 1), { 'h', '' }
    for n = 1, count do
      local name, payload, old = names[n + 3], ARGV[n * 4 + 6], found[n + 3]
      keys, bytes = keys + 1, bytes + #name + #payload - 3
      if old then keys, bytes = keys - 1, bytes - #name + 2 - math.max(0, #old - 9) end
      changes[n * 2 + 1], changes[n * 2 + 2] = name, version .. payload
    end
    -- A damaged entry may be longer than what was counted.
    keys, bytes = math.max(0, keys), math.max(0, bytes)
    if keys <= most_keys and bytes <= most_bytes then
      changes[2] = string.sub(h, 1, 129) .. struct.pack('>I8I8I8I8', math.max(used, now_ms), counter + 1, keys, bytes)
      redis.call('HSET', KEYS[1], unpack(changes))
      return { 0, counter + 1, '' }
    end
  end
end
--> record
local s, why, cause = find_own(KEYS[1], ARGV[2], read_cut_off(KEYS[2]))
if not s then return { 1, why, cause } end
local has_run_out = has_data_run_out(s)
local plan, refused, entries = plan_patch(s, 4, has_run_out)
if refused == 'conflict' then return { 2, entries } end
if refused == 'large' then return { 3 } end
if refused == 'number' then return { 4 } end
if has_run_out then drop_data(s) end
write_patch(s, plan)
local renewed = renew(s, ARGV[3])
save(s)
return { 0, s.counter, renewed or '' }
