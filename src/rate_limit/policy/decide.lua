-- Decides about all policies at once, and charges as the method says (check, record, check_and_record).
--
-- Redis makes every function of a script anew at each call, and collects every table: so the algorithms are no functions
-- but blocks, in the files beside their twins in Rust (here), put in where a line says so, and what they work on
-- lies in locals:
--   find: from `raw` (or false) to the state a, b, c, d (a is nil where nothing counts), `wait` if the cost is not
--   admitted, `changed` if the state had to be repaired. settle: charges if `charging`, then gives what is `used`,
--   when there is `more` (-1: nothing is used), the entry e1, e2, e3, `amount`, and if `changed` the `state` to write
--   (false: none) and when it `ends`.
-- All numbers are whole and stay below 2^53; no quotient is taken but of what was made divisible (math.fmod is exact).
--
-- KEYS: per policy its state and its block. ARGV from 2, one per policy: algorithm, mode (1 enforced, 0 shadow),
-- effective limit, declared limit (gcra: burst), window in microseconds, num, den, cost.
-- Reply: admitted, now, undecodable; per policy outcome, used, more and retry (-1 is none), and its entry (amount 0 is
-- none, then the first number is what is left of a block).
local ADMITTED, DENIED, BLOCKED, NEVER = 0, 1, 2, 3
local LEAD = 1000000 -- a stamp farther ahead was made before the clock went back
local count, raws = #KEYS / 2, redis.call('MGET', unpack(KEYS))
local admitted, undecodable, found, rows = true, 0, {}, {}
local key, algorithm, mode, limit, declared, window, num, den, cost
local left, outcome, retry, changed, a, b, c, d
for index = 1, count do
  key = KEYS[index * 2 - 1]
  algorithm, mode, limit, declared, window, num, den, cost = struct.unpack('>BBI4I4I8I8I8I4', ARGV[index + 1])
  local raw, block = raws[index * 2 - 1], raws[index * 2]
  local asks, wait = cost > 0 and cost <= limit, 0
  changed, a, b, c, d = false, nil, nil, nil, nil
  --> find
  left, outcome, retry = 0, ADMITTED, 0
  if block then
    local until_at = tonumber(block)
    if not until_at then undecodable = undecodable + 1 elseif until_at > now then left = until_at - now end
  end
  if left > 0 then
    -- The end of a block lets nobody in whom the quota still keeps out.
    outcome, retry = BLOCKED, math.max(left, wait)
  elseif cost > limit then
    outcome, retry = NEVER, -1
  elseif wait > 0 then
    outcome, retry = DENIED, wait
  end
  if outcome ~= ADMITTED and mode == 1 then admitted = false end
  -- Of one policy alone all is still there below.
  if count > 1 then found[index] = { left, outcome, retry, changed, a, b, c, d } end
end
for index = 1, count do
  if count > 1 then
    key = KEYS[index * 2 - 1]
    algorithm, mode, limit, declared, window, num, den, cost = struct.unpack('>BBI4I4I8I8I8I4', ARGV[index + 1])
    left, outcome, retry, changed, a, b, c, d = unpack(found[index], 1, 8)
  end
  local charging = cost > 0 and (is_forced or (is_charging and admitted and outcome == ADMITTED))
  local used, more, e1, e2, e3, amount, state, ends = 0, -1, 0, 0, 0, 0, false, 0
  --> settle
  --> write
  if amount == 0 then e1, e2, e3 = left, 0, 0 end
  rows[index] = struct.pack('>BI8i8i8I8I8I8I8', outcome, used, more, retry, e1, e2, e3, amount)
end
return struct.pack('>BI8I4', (admitted or is_forced) and 1 or 0, now, undecodable) .. table.concat(rows)
