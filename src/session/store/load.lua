-- Reads a session, records activity if due, drops data that ran out.
-- KEYS: session, cut-off. ARGV from 2: verifier, '1' with all data, what was seen (20 bytes; '' records nothing).
-- Reply: {0, now, what was seen before a renewal (else ''), session, {name, entry…}}, or {1, why, cause}.
local s, why, cause = find_own(KEYS[1], ARGV[2], read_cut_off(KEYS[2]))
if not s then return { 1, why, cause } end
local wants_data, seen = ARGV[3] == '1', ARGV[4]
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
local entries = {}
if wants_data and s.keys > 0 then
  local fields = redis.call('HGETALL', s.key)
  for n = 1, #fields, 2 do
    if string.sub(fields[n], 1, 2) == 'd:' then
      entries[#entries + 1] = string.sub(fields[n], 3)
      entries[#entries + 1] = fields[n + 1]
    end
  end
end
return { 0, whole(now_ms), renewed or '', told(s), entries }
