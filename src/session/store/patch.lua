-- Changes data of a live session: all operations or none.
-- KEYS: session, cut-off. ARGV from 2: verifier, what was seen, then the patch as `plan_patch` takes it.
-- Reply: {0, version, what was seen before a renewal (else '')}, {1, why, cause}, {2, {name, entry…}} for a conflict, {3} too large, {4} no number.
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
return { 0, whole(s.counter), renewed or '' }
