-- Before those scripts of a queue that must see all of its jobs: while some of a part are still to be put in their places,
-- whoever asks does that first (`unfold.lua`).
if redis.call('EXISTS', PART) == 1 then
  return 0
end
