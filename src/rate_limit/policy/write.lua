-- A key outlives what counts in it by a minute. (A text: servers from 7.2.0 to 7.2.4 write a number's zeros as an exponent.)
if changed then
  if state then
    redis.call('SET', key, state, 'PX', string.format('%.0f', math.max(0, math.ceil((ends - now) / 1000)) + 60000))
  else
    redis.call('DEL', key)
  end
end
