//! The tables that histories are made over, and how they come back to where they began.

/// On A and on C. What A cascades comes as changes, so C has to check at the end, and to cascade nothing of its own: where
/// a history is applied without the right to turn foreign keys off, the engine could not tell the two apart.
const DDL: &str = r"
CREATE FUNCTION big(seed int) RETURNS text LANGUAGE sql IMMUTABLE
    AS $$ SELECT string_agg(md5(seed::text || i::text), '') FROM generate_series(1, 70) i $$;
DO $$ BEGIN
    CREATE COLLATION folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
EXCEPTION WHEN feature_not_supported THEN CREATE COLLATION folded (locale = 'C');
END $$;

CREATE TABLE uniques (
    id int PRIMARY KEY, code text UNIQUE, a int, b int, slot int UNIQUE DEFERRABLE, span int4range, note text, big text,
    UNIQUE (a, b), EXCLUDE USING gist (span WITH &&));
CREATE UNIQUE INDEX uniques_note ON uniques (lower(note)) WHERE a > 5;
ALTER TABLE uniques ALTER big SET STORAGE EXTERNAL;

CREATE TABLE composite (
    n numeric, k text COLLATE folded, v int, big text, list int[], words text[],
    doubled int GENERATED ALWAYS AS (v * 2) STORED, PRIMARY KEY (n, k));
ALTER TABLE composite ALTER big SET STORAGE EXTERNAL;

CREATE TABLE parent (
    id int PRIMARY KEY, boss int REFERENCES parent {set null}, tag text UNIQUE, big text);
ALTER TABLE parent ALTER big SET STORAGE EXTERNAL;
CREATE TABLE child (
    id int PRIMARY KEY, parent int REFERENCES parent {cascade}, note text);
CREATE TABLE member (
    parent int REFERENCES parent {cascade}, place int,
    tag text REFERENCES parent (tag) {set null}, PRIMARY KEY (parent, place));

CREATE TABLE large (id int PRIMARY KEY, k text, n int, one text, two text, list text[]);
CREATE TABLE large_full (LIKE large INCLUDING ALL); ALTER TABLE large_full REPLICA IDENTITY FULL;
CREATE TABLE large_index (LIKE large INCLUDING ALL); ALTER TABLE large_index ALTER k SET NOT NULL;
CREATE UNIQUE INDEX large_index_k ON large_index (k);
ALTER TABLE large_index REPLICA IDENTITY USING INDEX large_index_k;
DO $$ DECLARE name text; BEGIN
    FOREACH name IN ARRAY '{large,large_full,large_index}'::text[] LOOP
        EXECUTE format('ALTER TABLE %I ALTER one SET STORAGE EXTERNAL, ALTER two SET STORAGE EXTERNAL,
            ALTER list SET STORAGE EXTERNAL', name);
    END LOOP;
END $$;

CREATE TABLE bag (n numeric, note text, big text, list int[]); ALTER TABLE bag REPLICA IDENTITY FULL;
ALTER TABLE bag ALTER big SET STORAGE EXTERNAL;

CREATE TABLE regions (id int, region text, note text, big text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE regions_a PARTITION OF regions FOR VALUES IN ('a'); CREATE TABLE regions_b PARTITION OF regions DEFAULT;
ALTER TABLE regions_a ALTER big SET STORAGE EXTERNAL; ALTER TABLE regions_b ALTER big SET STORAGE EXTERNAL;
";

/// What only A has: a table that nobody publishes, and what the statements of histories call.
const DDL_A: &str = r"
CREATE TABLE altered (id int PRIMARY KEY, note text);
CREATE SCHEMA unpublished; CREATE TABLE unpublished.t (n int);

-- Each row takes the value of the one before, and the first, which has `spare` meanwhile, that of the last.
CREATE FUNCTION rotate(name text, col text, ids int[], spare text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    kind text := (SELECT atttypid::regtype FROM pg_attribute WHERE attrelid = name::regclass AND attname = col);
    statement text := format('UPDATE %I SET %I = $1::%s WHERE id = $2', name, col, kind);
    have int[]; held text[]; last int;
BEGIN
    EXECUTE format('SELECT array_agg(id ORDER BY place), array_agg(%I::text ORDER BY place)
        FROM %I JOIN unnest($1) WITH ORDINALITY AS wanted (id, place) USING (id)', col, name) INTO have, held USING ids;
    last := cardinality(have);
    IF last IS NULL OR last < 2 THEN RETURN; END IF;
    EXECUTE statement USING spare, have[1];
    FOR i IN 2 .. last LOOP EXECUTE statement USING held[i - 1], have[i]; END LOOP;
    EXECUTE statement USING held[last], CASE WHEN col = 'id' THEN spare::int ELSE have[1] END;
END $$;

-- Back to what a history begins with, in as few changes as there are.
CREATE PROCEDURE reset() LANGUAGE plpgsql AS $$
DECLARE col text;
BEGIN
    FOR col IN SELECT attname FROM pg_attribute
        WHERE attrelid = 'altered'::regclass AND attname ~ '^e[0-9]' AND NOT attisdropped
    LOOP
        EXECUTE format('ALTER TABLE altered DROP COLUMN %I', col);
    END LOOP;
    ALTER TABLE large_full REPLICA IDENTITY FULL;
    TRUNCATE uniques, composite, parent, child, member, large, large_full, large_index, bag, regions, altered;
END $$;
";

/// What only C has: the columns that A's table gets now and then, and further ones elsewhere.
const DDL_C: &str = "
CREATE TABLE altered (e2 int, e1 text, note text, id int PRIMARY KEY, e3 text, e4 int, e5 text, e6 int, e7 text, e8 int);
ALTER TABLE composite ADD of_c text DEFAULT 'default';
";

/// Columns that A's `altered` can get: `e1` to this one, the odd ones text, the even ones int.
pub const ADDED_COLUMNS_MAX: u64 = 8;

pub const TABLES: [&str; 11] = [
    "public.uniques",
    "public.composite",
    "public.parent",
    "public.child",
    "public.member",
    "public.large",
    "public.large_full",
    "public.large_index",
    "public.bag",
    "public.regions",
    "public.altered",
];

pub fn on_a() -> String {
    let cascade = DDL.replace("{cascade}", "ON DELETE CASCADE ON UPDATE CASCADE");
    cascade.replace("{set null}", "ON DELETE SET NULL ON UPDATE CASCADE DEFERRABLE") + DDL_A
}

pub fn on_c() -> String {
    DDL.replace("{cascade}", "DEFERRABLE").replace("{set null}", "DEFERRABLE") + DDL_C
}
