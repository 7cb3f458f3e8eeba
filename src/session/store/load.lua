-- Reads a session, records activity if due, drops data that ran out.
-- KEYS: session, cut-off. ARGV from 2: verifier, '1' with all data, what was seen (20 bytes; '' records nothing).
-- Reply: {0, now, what was seen before a renewal (else ''), {field, value…}}, or {1, why, cause}.
local wants_data, seen = ARGV[3] == '1', ARGV[4]
local fields, h, t, c
if wants_data then
  fields = redis.call('HGETALL', KEYS[1])
  for n = 1, #fields, 2 do
    local name = fields[n]
    if name == 'h' then h = fields[n + 1] elseif name == 'c' then c = fields[n + 1] elseif name == 't' then
      t = fields[n + 1] end
  end
else
  local core = redis.call('HMGET', KEYS[1], 'h', 't', 'c', 'u', 'r')
  h, t, c = core[1], core[2], core[3]
  fields = { 'h', h, 'c', c, 'u', core[4] or '', 'r', core[5] or '' }
end
--> usual
if is_usual and (keys > 0 or not wants_data) and (seen == '' or (now_ms - last <= math.min(idle / 10, 60000)
  and not (wants_data and keys > 0 and now_ms - used > math.min(extended / 10, 60000)))) then
  return { 0, now_ms, '', fields }
end
--> record
local s, why, cause = find_own(KEYS[1], ARGV[2], read_cut_off(KEYS[2]))
if not s then return { 1, why, cause } end
local changed, renewed = false, nil
if has_data_run_out(s) then
  drop_data(s)
  changed = true
end
if seen ~= '' then
  if wants_data and s.keys > 0 and is_due(s.used, s.extended) then
    s.used = math.max(s.used, now_ms)
    changed = true
  end
  renewed = renew(s, seen)
end
if changed or renewed then save(s) end
if wants_data and s.keys > 0 then return { 0, now_ms, renewed or '', redis.call('HGETALL', s.key) } end
return { 0, now_ms, renewed or '', { 'h', header(s), 'c', s.c, 'u', s.u or '', 'r', s.r or '' } }
