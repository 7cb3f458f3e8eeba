-- Calendar months of UTC: bounds c and d, in eras of 400 years of the proleptic Gregorian calendar from March.
do
  local today = (now - math.fmod(now, 86400000000)) / 86400000000
  local day = math.fmod(today + 719468, 146097)
  local year = math.floor((day - math.floor(day / 1460) + math.floor(day / 36524) - math.floor(day / 146096)) / 365)
  local of_year = day - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local month = math.floor((5 * of_year + 2) / 153)
  local first = math.floor((153 * month + 2) / 5)
  local length = math.floor((153 * month + 155) / 5) - first
  if month == 11 then
    -- February ends the year that began in March of the year before; the era's last is a leap year, 400 divides it.
    local own = year + 1
    length = (own % 4 == 0 and (own % 100 ~= 0 or own == 400)) and 29 or 28
  end
  c = (today - of_year + first) * 86400000000
  d = c + length * 86400000000
end
