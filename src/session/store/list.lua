-- Lists a user's live sessions.
-- KEYS: index (or the asking session), asking session (or the index), cut-off.
-- ARGV from 2: '1' if a session asks, its verifier.
-- Reply: {0, {session…}}, {1, why, cause} if the asking session is not live, {2} if it has no user.
local cut_off, index = read_cut_off(KEYS[3]), KEYS[1]
if ARGV[2] == '1' then
  local s, why, cause = find_own(KEYS[2], ARGV[3], cut_off)
  if not s then return { 1, why, cause } end
  if not s.i then return { 2 } end
  index = s.i
end
local sessions = {}
for n, s in ipairs(family(index, cut_off)) do sessions[n] = told(s) end
return { 0, sessions }
