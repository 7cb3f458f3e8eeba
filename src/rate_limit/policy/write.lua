-- A key outlives what counts in it by a minute.
if changed then
  if state then
    redis.call('SET', key, state, 'PX', math.max(0, math.ceil((ends - now) / 1000)) + 60000)
  else
    redis.call('DEL', key)
  end
end
