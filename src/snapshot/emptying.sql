-- $1: tables that lose rows, as they are quoted; $2: whether triggers fire as on an origin, else as on a replica.
-- One row for each foreign key that acts on rows elsewhere when theirs are deleted, or keeps theirs from being deleted.
WITH RECURSIVE losing AS MATERIALIZED (
    -- The tables, and what is theirs as partitions.
    SELECT w.place, tree.oid
    FROM unnest($1::text[]) WITH ORDINALITY AS w (name, place)
    CROSS JOIN LATERAL (
        SELECT to_regclass(w.name)::oid UNION SELECT t.relid::oid FROM pg_partition_tree(to_regclass(w.name)) t
    ) AS tree (oid)
), whole AS (
    -- What PostgreSQL has made of a foreign key for partitions, with the key itself.
    SELECT k.oid, k.oid AS root FROM pg_constraint k WHERE k.contype = 'f' AND k.conparentid = 0
  UNION ALL
    SELECT k.oid, whole.root FROM whole JOIN pg_constraint k ON k.conparentid = whole.oid
), acting AS MATERIALIZED (
    SELECT whole.root, k.conrelid, k.confrelid, k.confdeltype
    FROM pg_constraint k JOIN whole ON whole.oid = k.oid
    WHERE EXISTS (SELECT FROM pg_trigger g WHERE g.tgconstraint = k.oid AND g.tgrelid = k.confrelid AND g.tgtype & 8 <> 0
                    AND g.tgenabled = ANY (CASE WHEN $2 THEN '{O,A}' ELSE '{R,A}' END::"char"[]))
), reached AS (
    SELECT losing.place, a.root, a.conrelid, a.confdeltype, true AS is_direct,
        EXISTS (SELECT FROM losing own WHERE own.place = losing.place AND own.oid = a.conrelid) AS is_own
    FROM losing JOIN acting a ON a.confrelid = losing.oid
  UNION
    -- Rows that are deleted by a cascade are deleted like any others.
    SELECT reached.place, a.root, a.conrelid, a.confdeltype, false, false
    FROM reached
    CROSS JOIN LATERAL (
        SELECT reached.conrelid UNION SELECT t.relid::oid FROM pg_partition_tree(reached.conrelid) t
    ) AS tree (oid)
    JOIN acting a ON a.confrelid = tree.oid
    WHERE reached.confdeltype = 'c' AND NOT reached.is_own
)
SELECT found.place, found.is_direct, found.is_own, k.confdeltype IN ('c', 'n', 'd') AS acts,
    n.nspname::text, c.relname::text, k.conname::text,
    CASE k.confdeltype WHEN 'c' THEN 'CASCADE' WHEN 'n' THEN 'SET NULL' WHEN 'd' THEN 'SET DEFAULT' WHEN 'r' THEN 'RESTRICT'
                       ELSE 'NO ACTION' END,
    pg_get_constraintdef(k.oid),
    CASE WHEN has_table_privilege(c.oid, 'SELECT') THEN
        (SELECT format('SELECT FROM %s%I.%I WHERE %s LIMIT 1', CASE WHEN c.relkind <> 'p' THEN 'ONLY ' END, n.nspname, c.relname,
                       string_agg(format('%I IS NOT NULL', a.attname), ' AND '))
         FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = ANY (k.conkey)) END
FROM (SELECT DISTINCT place, root, is_direct, is_own FROM reached) AS found
JOIN pg_constraint k ON k.oid = found.root JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY 1, 2 DESC, 5, 6, 7
