-- $1: tables as they are quoted. One row for each constraint that is NOT VALID and would look at the rows of one of them, where it
-- was declared: a partition or a child has it from there.
WITH RECURSIVE relations AS (
    SELECT w.place, tree.oid, false AS is_ancestor
    FROM unnest($1::text[]) WITH ORDINALITY AS w (name, place)
    CROSS JOIN LATERAL (
        SELECT to_regclass(w.name)::oid UNION SELECT t.relid::oid FROM pg_partition_tree(to_regclass(w.name)) t
    ) AS tree (oid)
  UNION
    SELECT r.place, i.inhparent, true FROM relations r JOIN pg_inherits i ON i.inhrelid = r.oid
)
SELECT min(r.place), format('%I.%I', n.nspname, c.relname), k.conname::text,
    format('ALTER TABLE %I.%I ADD CONSTRAINT %I %s', n.nspname, c.relname, k.conname, pg_get_constraintdef(k.oid)),
    COALESCE(format('COMMENT ON CONSTRAINT %I ON %I.%I IS ', k.conname, n.nspname, c.relname)
             || quote_literal(obj_description(k.oid, 'pg_constraint')), ''),
    format('ALTER TABLE %I.%I DROP CONSTRAINT %I', n.nspname, c.relname, k.conname),
    pg_has_role(c.relowner, 'USAGE')
FROM relations r JOIN pg_constraint k ON k.conrelid = r.oid
JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
-- A check, or from 18 on a NOT NULL. Whoever is not enforced looks at nothing.
WHERE k.contype IN ('c', 'n') AND NOT k.convalidated AND k.coninhcount = 0
    AND COALESCE((to_jsonb(k) ->> 'conenforced')::bool, true)
    AND NOT (r.is_ancestor AND k.connoinherit)
GROUP BY k.oid, n.nspname, c.relname, c.relowner
ORDER BY 1, 2, 3
