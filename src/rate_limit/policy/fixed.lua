-- Fixed windows and calendar months of UTC: start, used, birth.

local fixed = {}
local DAY = 86400000000

-- The proleptic Gregorian calendar in eras of 400 years from March.
local function first_day(year, month)
  if month > 2 then month = month - 3 else year, month = year - 1, month + 9 end
  local era, within = whole(year, 400)
  local days = math.floor((153 * month + 2) / 5)
  return era * 146097 + within * 365 + math.floor(within / 4) - math.floor(within / 100) + days - 719468
end

local function month_bounds()
  local era, day = whole(whole(now, DAY) + 719468, 146097)
  local within = math.floor((day - math.floor(day / 1460) + math.floor(day / 36524) - math.floor(day / 146096)) / 365)
  local of_year = day - (365 * within + math.floor(within / 4) - math.floor(within / 100))
  local year, month = era * 400 + within, math.floor((5 * of_year + 2) / 153)
  if month < 10 then month = month + 3 else year, month = year + 1, month - 9 end
  local next_year, next_month = year, month + 1
  if month == 12 then next_year, next_month = year + 1, 1 end
  return first_day(year, month) * DAY, first_day(next_year, next_month) * DAY
end

function fixed.write(p, s)
  if s.used == 0 then
    redis.call('DEL', p.key)
    return
  end
  local state = string.format('%.0f %.0f %.0f', s.start, s.used, s.born)
  redis.call('SET', p.key, state, 'PX', ttl(p.finish))
end

function fixed.load(p, raw)
  if p.algorithm == 'm' then
    p.start, p.finish = month_bounds()
  else
    p.start = now - math.fmod(now, p.window)
    p.finish = p.start + p.window
  end
  local start, used, born = three(p, raw)
  if not start or start < p.start then return nil end
  local s = { start = p.start, used = used, born = born }
  if start > p.start then fixed.write(p, s) end
  return s
end

function fixed.usage(p, s)
  if s.used == 0 or p.limit == 0 then return s.used, -1 end
  return s.used, p.finish - now
end

function fixed.wait(p, s)
  if s.used > p.limit - p.cost then return p.finish - now end
  return 0
end

function fixed.charge(p, s)
  s = s or { used = 0 }
  if s.used == 0 then s.start, s.born = p.start, now end
  local after = math.max(s.used, math.min(s.used + p.cost, p.declared))
  p.entry = { s.start, s.born, 0, after - s.used }
  s.used = after
  fixed.write(p, s)
  p.used, p.more = fixed.usage(p, s)
end

ALGORITHMS.f, ALGORITHMS.m = fixed, fixed

