-- $1: tables as they are quoted; $2: whether their indexes may go. One row for each object that is to be dropped.
WITH RECURSIVE relations AS MATERIALIZED (
    -- The tables, and what is theirs as partitions.
    SELECT w.place, w.droppable, tree.oid
    FROM unnest($1::text[], $2::bool[]) WITH ORDINALITY AS w (name, droppable, place)
    CROSS JOIN LATERAL (
        SELECT to_regclass(w.name)::oid UNION SELECT t.relid::oid FROM pg_partition_tree(to_regclass(w.name)) t
    ) AS tree (oid)
), foreign_keys AS MATERIALIZED (
    -- Those of which both ends are copied, and which work as they were made.
    SELECT k.oid, r.place, parent.place AS parent_place
    FROM relations r JOIN pg_constraint k ON k.conrelid = r.oid JOIN relations parent ON parent.oid = k.confrelid
    WHERE k.contype = 'f' AND k.conparentid = 0 AND COALESCE((to_jsonb(k) ->> 'conenforced')::bool, true)
      AND NOT EXISTS (SELECT FROM pg_constraint part JOIN pg_trigger g ON g.tgconstraint = part.oid
                      WHERE k.oid IN (part.oid, part.conparentid) AND g.tgenabled <> 'O')
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_constraint'::regclass AND d.objid = k.oid
                                                AND d.deptype IN ('e', 'x'))
), leaving AS (
    SELECT oid FROM foreign_keys
  UNION
    SELECT k.oid FROM leaving JOIN pg_constraint k ON k.conparentid = leaving.oid
), nodes AS MATERIALIZED (
    -- Each index that is not attached to another, with those that are attached to it.
    SELECT c.oid AS root, r.place, r.oid AS relation, node.oid, node.level, k.oid AS constraint_oid
    FROM relations r JOIN pg_index i ON i.indrelid = r.oid JOIN pg_class c ON c.oid = i.indexrelid
    CROSS JOIN LATERAL (
        SELECT c.oid, 0 WHERE c.relkind = 'i'
        UNION ALL SELECT t.relid::oid, t.level FROM pg_partition_tree(c.oid) t WHERE c.relkind = 'I'
    ) AS node (oid, level)
    LEFT JOIN pg_constraint k ON k.conindid = node.oid AND k.contype IN ('u', 'x')
    WHERE r.droppable AND NOT c.relispartition
), staying AS (
    SELECT node.root FROM nodes node JOIN pg_index i ON i.indexrelid = node.oid
    LEFT JOIN pg_constraint k ON k.oid = node.constraint_oid
    WHERE i.indisprimary OR i.indisreplident OR NOT (i.indisvalid AND i.indisready AND i.indislive)
       -- Partitions' exclusion constraints are not taken over when the partitioned table's is made.
       OR k.contype = 'x' AND node.root IN (SELECT other.root FROM nodes other WHERE other.level > 0)
       OR EXISTS (SELECT FROM pg_trigger g WHERE g.tgconstraint = k.oid AND g.tgenabled <> 'O')
       OR EXISTS (SELECT FROM pg_depend d WHERE d.deptype IN ('e', 'x')
                    AND (d.classid = 'pg_class'::regclass AND d.objid = node.oid
                         OR d.classid = 'pg_constraint'::regclass AND d.objid = k.oid))
       OR EXISTS (SELECT FROM pg_depend d WHERE d.deptype = 'n'
                    AND (d.refclassid = 'pg_class'::regclass AND d.refobjid = node.oid
                         OR d.refclassid = 'pg_constraint'::regclass AND d.refobjid = k.oid)
                    AND NOT (d.classid = 'pg_constraint'::regclass AND d.objid IN (SELECT oid FROM leaving)))
), statements AS (
    SELECT node.root, node.place, node.relation, node.level, node.constraint_oid, c.relname, c.reltablespace, rel.oid AS rel_oid,
        format('%I.%I', rel_schema.nspname, rel.relname) AS rel_name,
        -- A partitioned index is made by itself, as its definition says, and those of the partitions, which are there by then, are
        -- attached by name: PostgreSQL would take whichever looks the same, and takes DESC for the same.
        CASE WHEN k.oid IS NULL THEN pg_get_indexdef(c.oid)
        ELSE format('ALTER TABLE %s%I.%I ADD CONSTRAINT %I %s', CASE WHEN c.relkind = 'I' THEN 'ONLY ' END,
            rel_schema.nspname, rel.relname, k.conname,
            -- Storage options are not in the definition of a unique constraint, and stand before when it is checked.
            CASE WHEN k.contype = 'u' AND c.reloptions IS NOT NULL THEN
                left(bare.definition, length(bare.definition) - length(bare.checked))
                || format(' WITH (%s)', array_to_string(c.reloptions, ', ')) || bare.checked
            ELSE bare.definition END)
        END || COALESCE((
            SELECT string_agg(format('; ALTER INDEX %I.%I ATTACH PARTITION %I.%I', s.nspname, c.relname, part_schema.nspname, part.relname),
                              '' ORDER BY part_schema.nspname, part.relname)
            FROM pg_inherits h JOIN pg_class part ON part.oid = h.inhrelid JOIN pg_namespace part_schema ON part_schema.oid = part.relnamespace
            WHERE h.inhparent = c.oid
        ), '') AS definition,
        concat_ws('; ',
            (SELECT string_agg(format('ALTER INDEX %I.%I ALTER COLUMN %s SET STATISTICS %s', s.nspname, c.relname, a.attnum,
                                      a.attstattarget), '; ' ORDER BY a.attnum)
             FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attstattarget >= 0),
            CASE WHEN i.indisclustered THEN format('ALTER TABLE %I.%I CLUSTER ON %I', rel_schema.nspname, rel.relname, c.relname) END,
            format('COMMENT ON INDEX %I.%I IS ', s.nspname, c.relname) || quote_literal(obj_description(c.oid, 'pg_class')),
            format('COMMENT ON CONSTRAINT %s ON %I.%I IS ', quote_ident(k.conname), rel_schema.nspname, rel.relname)
                || quote_literal(obj_description(k.oid, 'pg_constraint'))
        ) AS attributes
    FROM nodes node
    JOIN pg_class c ON c.oid = node.oid JOIN pg_namespace s ON s.oid = c.relnamespace JOIN pg_index i ON i.indexrelid = c.oid
    JOIN pg_class rel ON rel.oid = i.indrelid JOIN pg_namespace rel_schema ON rel_schema.oid = rel.relnamespace
    LEFT JOIN pg_constraint k ON k.oid = node.constraint_oid
    CROSS JOIN LATERAL (
        SELECT pg_get_constraintdef(k.oid) AS definition, concat(
            CASE WHEN k.condeferrable THEN ' DEFERRABLE' END, CASE WHEN k.condeferred THEN ' INITIALLY DEFERRED' END
        ) AS checked
    ) AS bare
    WHERE node.root NOT IN (SELECT root FROM staying)
)
SELECT one.place, CASE WHEN max(one.constraint_oid) FILTER (WHERE one.level = 0) IS NULL THEN 'index' ELSE 'constraint' END,
    format('%I.%I', n.nspname, r.relname), max(one.relname::text) FILTER (WHERE one.level = 0),
    -- What default_tablespace says holds where the statement says nothing.
    string_agg(CASE WHEN tablespaces.are_named
                    THEN format('SET LOCAL default_tablespace = %L; ', COALESCE(ts.spcname, '')) ELSE '' END || one.definition,
               '; ' ORDER BY one.level DESC, one.rel_name),
    COALESCE(string_agg(NULLIF(one.attributes, ''), '; ' ORDER BY one.level DESC, one.rel_name), ''),
    CASE WHEN max(one.constraint_oid) FILTER (WHERE one.level = 0) IS NULL
         THEN format('DROP INDEX %I.%I', n.nspname, max(one.relname::text) FILTER (WHERE one.level = 0))
         ELSE format('ALTER TABLE %I.%I DROP CONSTRAINT %I', n.nspname, r.relname,
                     max(one.relname::text) FILTER (WHERE one.level = 0)) END,
    NULL::bigint, false,
    array_remove(array_agg(DISTINCT CASE WHEN NOT pg_has_role(rel.relowner, 'USAGE') THEN one.rel_name END), NULL),
    array_remove(array_agg(DISTINCT CASE WHEN NOT has_schema_privilege(rel.relnamespace, 'CREATE')
                                         THEN format('SCHEMA %s', rel.relnamespace::regnamespace) END)
        || array_agg(DISTINCT CASE WHEN ts.oid IS NOT NULL AND NOT has_tablespace_privilege(ts.oid, 'CREATE')
                                   THEN format('TABLESPACE %I', ts.spcname) END), NULL)
FROM statements one
JOIN pg_class rel ON rel.oid = one.rel_oid
JOIN pg_class r ON r.oid = one.relation JOIN pg_namespace n ON n.oid = r.relnamespace
LEFT JOIN pg_tablespace ts ON ts.oid = one.reltablespace
CROSS JOIN LATERAL (
    SELECT bool_or(other.reltablespace <> 0) AS are_named FROM statements other WHERE other.root = one.root
) AS tablespaces
GROUP BY one.root, one.place, n.nspname, r.relname
UNION ALL
SELECT f.place, 'foreign key', format('%I.%I', n.nspname, r.relname), k.conname::text,
    tree.definition, tree.comments,
    format('ALTER TABLE %I.%I DROP CONSTRAINT %I', n.nspname, r.relname, k.conname), f.parent_place,
    -- What hangs on partitions would stay unchecked, and one that was never checked is not to be.
    k.convalidated AND r.relkind = 'r' AND parent.relkind = 'r',
    array_remove(ARRAY[CASE WHEN NOT pg_has_role(r.relowner, 'USAGE') THEN format('%I.%I', n.nspname, r.relname) END,
                       CASE WHEN NOT has_table_privilege(k.confrelid, 'REFERENCES') THEN k.confrelid::regclass::text END], NULL),
    '{}'
FROM foreign_keys f JOIN pg_constraint k ON k.oid = f.oid
JOIN pg_class r ON r.oid = k.conrelid JOIN pg_namespace n ON n.oid = r.relnamespace
JOIN pg_class parent ON parent.oid = k.confrelid
CROSS JOIN LATERAL (
    -- Partitions have one each. Where those are other than PostgreSQL makes them, in name or in what is checked, they are made first,
    -- and become parts of the whole.
    WITH RECURSIVE parts AS (
        SELECT k.oid, k.conrelid, 0 AS level
      UNION ALL
        SELECT part.oid, part.conrelid, parts.level + 1
        FROM parts JOIN pg_constraint part ON part.conparentid = parts.oid AND part.conrelid <> parts.conrelid
    )
    SELECT string_agg(format('ALTER TABLE %I.%I ADD CONSTRAINT %I %s', ns.nspname, c.relname, part.conname, pg_get_constraintdef(part.oid)),
                      '; ' ORDER BY parts.level DESC, ns.nspname, c.relname) FILTER (WHERE parts.level = 0 OR odd.is_any) AS definition,
        COALESCE(string_agg(format('COMMENT ON CONSTRAINT %I ON %I.%I IS ', part.conname, ns.nspname, c.relname)
                            || quote_literal(obj_description(part.oid, 'pg_constraint')), '; '), '') AS comments
    FROM parts JOIN pg_constraint part ON part.oid = parts.oid
    JOIN pg_class c ON c.oid = part.conrelid JOIN pg_namespace ns ON ns.oid = c.relnamespace
    CROSS JOIN LATERAL (
        SELECT bool_or(one.conname <> k.conname OR one.convalidated <> k.convalidated) AS is_any
        FROM parts others JOIN pg_constraint one ON one.oid = others.oid
    ) AS odd
) AS tree
ORDER BY 1, 3, 4
