-- Makes a server send every message of pgoutput and prints them, one "lsn hex" a line, each scenario after "# name".
-- Run by `capture`, which sets :pg18 and keeps the output.

SET client_min_messages = warning;
SET client_encoding = 'UTF8';

CREATE SCHEMA capture;
CREATE FUNCTION capture.changes(slot text, VARIADIC options text[]) RETURNS SETOF text LANGUAGE sql AS $$
    SELECT lsn || ' ' || encode(data, 'hex')
    FROM pg_logical_slot_get_binary_changes(slot, NULL, NULL,
        VARIADIC ARRAY['proto_version', '4', 'messages', 'true'] || options)
$$;

-- Decoding streams a transaction once its changes exceed logical_decoding_work_mem. These rows are not published: they
-- fill the memory and leave the capture small.
CREATE TABLE capture.filler (id int, bulk text);
ALTER TABLE capture.filler ALTER bulk SET STORAGE PLAIN;
CREATE FUNCTION capture.fill() RETURNS void LANGUAGE sql AS $$
    INSERT INTO capture.filler SELECT i, repeat('x', 7000) FROM generate_series(1, 11) i
$$;

CREATE SCHEMA app;
CREATE SCHEMA "Größe ""A""";
CREATE TYPE app.mood AS ENUM ('sad', 'ok', 'glücklich');
CREATE DOMAIN app.positive AS int CHECK (VALUE > 0);
CREATE TYPE app.addr AS (street text, zip int);

-- Replica identity d; every kind of type that Type messages name; aclitem has no send function, so it stays text in
-- binary mode.
CREATE TABLE app.typed (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    code varchar(5) NOT NULL,
    price numeric(10, 2),
    made timestamptz,
    mood app.mood,
    qty app.positive,
    addr app.addr,
    moods app.mood[],
    acl aclitem,
    raw bytea
);
CREATE TABLE app.pair_key (a int, b text, note text, PRIMARY KEY (a, b));
CREATE TABLE app.full_identity (id int, note text, big text);
ALTER TABLE app.full_identity ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
CREATE TABLE app.by_index (id int PRIMARY KEY, code text NOT NULL, note text);
CREATE UNIQUE INDEX by_index_code ON app.by_index (code);
ALTER TABLE app.by_index REPLICA IDENTITY USING INDEX by_index_code;
CREATE TABLE app.no_identity (id int, note text);
ALTER TABLE app.no_identity REPLICA IDENTITY NOTHING;
CREATE TABLE app.no_key (id int);
CREATE TABLE app.toasted (id int PRIMARY KEY, big text, n int);
ALTER TABLE app.toasted ALTER big SET STORAGE EXTERNAL;
CREATE TABLE app.computed (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED, z text);
CREATE TABLE app.dropped (id int PRIMARY KEY, gone text, kept text);
ALTER TABLE app.dropped DROP COLUMN gone;
CREATE TABLE app.no_columns ();
ALTER TABLE app.no_columns REPLICA IDENTITY FULL;
CREATE TABLE app.filtered (id int PRIMARY KEY, secret text);
CREATE TABLE "Größe ""A"""."Tab.le 'ß' 表" ("Id ""x""" int PRIMARY KEY, "значение" text);
-- 63 bytes each: the longest that PostgreSQL keeps.
CREATE TABLE app.t23456789012345678901234567890123456789012345678901234567890123 (
    c23456789012345678901234567890123456789012345678901234567890123 int PRIMARY KEY
);
CREATE TABLE app.parent (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
CREATE TABLE app.child (id int PRIMARY KEY, parent int REFERENCES app.parent);
CREATE TABLE app.streamed (id int PRIMARY KEY, mood app.mood, note text);
-- Its definition changes while it is streamed.
CREATE TABLE app.reshaped (id int PRIMARY KEY);

CREATE PUBLICATION rows FOR TABLE app.typed, app.pair_key, app.full_identity, app.by_index, app.toasted, app.computed,
    app.dropped, app.no_columns, app.filtered (id) WHERE (id < 100), app.parent, app.child,
    "Größe ""A"""."Tab.le 'ß' 表", app.t23456789012345678901234567890123456789012345678901234567890123;
-- PostgreSQL refuses updates and deletes of published tables without identity, unless only inserts are published.
CREATE PUBLICATION "inserts, ""only""" FOR TABLE app.no_identity, app.no_key WITH (publish = 'insert');
CREATE PUBLICATION streamed FOR TABLE app.streamed, app.reshaped;
\if :pg18
CREATE PUBLICATION computed FOR TABLE app.computed WITH (publish_generated_columns = stored);
\endif

SELECT pg_replication_origin_create('ursprung ü') \g /dev/null

------------------------------------------------------------------------------------------------------------------------
-- Rows, relations, types, truncates, messages and origins, once in text and once in binary.

SELECT FROM pg_create_logical_replication_slot('text', 'pgoutput');
SELECT FROM pg_create_logical_replication_slot('binary', 'pgoutput');

BEGIN;
INSERT INTO app.typed (code, price, made, mood, qty, addr, moods, acl, raw) VALUES
    ('a', 12.5, '2024-02-29 12:34:56.789+00', 'glücklich', 7, '("Weg, 1",12345)', '{ok,NULL}', 'postgres=r/postgres',
        '\x00ff'),
    ('', 'NaN', '-infinity', NULL, NULL, NULL, NULL, NULL, '');
COMMIT;
-- The identity is untouched: no old tuple.
UPDATE app.typed SET mood = 'sad' WHERE id = 1;
DELETE FROM app.typed WHERE id = 2;

INSERT INTO app.pair_key VALUES (1, 'ä', 'note'), (2, '', NULL);
-- The identity changes: old tuple K.
UPDATE app.pair_key SET b = 'ö' WHERE a = 1;
DELETE FROM app.pair_key WHERE a = 2;

INSERT INTO app.full_identity VALUES (1, NULL, repeat('b', 2100)), (1, NULL, 'short');
-- Identity full: old tuple O, whose TOASTed value comes in full while the new tuple's is unchanged.
UPDATE app.full_identity SET note = 'new' WHERE length(big) > 5;
DELETE FROM app.full_identity WHERE big = 'short';

INSERT INTO app.by_index VALUES (1, 'one', 'n'), (2, 'two', NULL);
UPDATE app.by_index SET note = NULL WHERE id = 1;
UPDATE app.by_index SET code = 'eins', id = 10 WHERE id = 1;
DELETE FROM app.by_index WHERE code = 'two';

INSERT INTO app.no_identity VALUES (1, 'only');
INSERT INTO app.no_key VALUES (1);

INSERT INTO app.toasted VALUES (1, repeat('t', 2100), 1);
UPDATE app.toasted SET n = 2;
-- The key moves, the TOASTed value stays.
UPDATE app.toasted SET id = 2;
UPDATE app.toasted SET big = NULL;

INSERT INTO app.computed (id, a, z) VALUES (1, 21, 'z');
UPDATE app.computed SET a = NULL;
INSERT INTO app.dropped VALUES (1, 'kept');
INSERT INTO app.no_columns DEFAULT VALUES;
DELETE FROM app.no_columns;

-- The filter takes and gives rows: into it an update becomes an insert, out of it a delete.
INSERT INTO app.filtered VALUES (1, 'not in the column list'), (200, 'not in the filter');
UPDATE app.filtered SET id = 2 WHERE id = 200;
UPDATE app.filtered SET id = 100 WHERE id = 1;

INSERT INTO "Größe ""A"""."Tab.le 'ß' 表" VALUES (1, 'да');
INSERT INTO app.t23456789012345678901234567890123456789012345678901234567890123 VALUES (-2147483648);

-- A change of definition sends the relation again.
BEGIN;
ALTER TABLE app.dropped ADD added int DEFAULT 5, ALTER kept TYPE varchar(9);
INSERT INTO app.dropped VALUES (2, 'k');
ALTER TABLE app.dropped RENAME TO renamed;
UPDATE app.renamed SET added = 6 WHERE id = 2;
COMMIT;

INSERT INTO app.parent DEFAULT VALUES;
INSERT INTO app.child VALUES (1, 1);
TRUNCATE app.computed;
TRUNCATE app.toasted, app.typed RESTART IDENTITY;
TRUNCATE app.parent CASCADE;
TRUNCATE app.parent, app.pair_key RESTART IDENTITY CASCADE;

BEGIN;
SELECT pg_logical_emit_message(true, 'größe', 'inside ä') \g /dev/null
-- Comes before the Begin of the transaction it is written in.
SELECT pg_logical_emit_message(false, 'p', '\x00010203ff'::bytea) \g /dev/null
INSERT INTO app.by_index VALUES (3, 'three', NULL);
COMMIT;
SELECT pg_logical_emit_message(true, '', '') \g /dev/null
BEGIN;
SELECT pg_logical_emit_message(true, 'lost', 'rolled back') \g /dev/null
SELECT pg_logical_emit_message(false, 'kept', 'although rolled back') \g /dev/null
ROLLBACK;

SELECT pg_replication_origin_session_setup('ursprung ü') \g /dev/null
BEGIN;
SELECT pg_replication_origin_xact_setup('A/BCDEF01', '2020-01-02 03:04:05.678901+00') \g /dev/null
INSERT INTO app.by_index VALUES (4, 'four', NULL);
COMMIT;
SELECT pg_replication_origin_session_reset() \g /dev/null

\set names 'rows,"inserts, ""only"""'
\echo '# text'
SELECT capture.changes('text', 'publication_names', :'names', 'streaming', 'off');
\echo '# binary'
SELECT capture.changes('binary', 'publication_names', :'names', 'streaming', 'off', 'binary', 'true');
SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \g /dev/null

\if :pg18
SELECT FROM pg_create_logical_replication_slot('computed', 'pgoutput');
INSERT INTO app.computed (id, a, z) VALUES (1, 21, 'z'), (2, NULL, NULL);
UPDATE app.computed SET a = 4 WHERE id = 2;
DELETE FROM app.computed WHERE id = 1;
\echo '# computed'
SELECT capture.changes('computed', 'publication_names', 'computed');
SELECT pg_drop_replication_slot('computed') \g /dev/null
\endif

------------------------------------------------------------------------------------------------------------------------
-- Transactions streamed while in progress, as far as the server could know then.

SELECT FROM pg_create_logical_replication_slot('stream_on', 'pgoutput');
SELECT FROM pg_create_logical_replication_slot('stream_parallel', 'pgoutput');

-- Several segments; all that carries an xid in front there; a definition that changes between them.
SELECT pg_replication_origin_session_setup('ursprung ü') \g /dev/null
BEGIN;
SELECT pg_replication_origin_xact_setup('B/1', '2021-01-01 00:00:00+00') \g /dev/null
INSERT INTO app.streamed VALUES (1, 'ok', 'one'), (2, NULL, NULL);
SELECT pg_logical_emit_message(true, 'p', 'streamed') \g /dev/null
SELECT pg_logical_emit_message(false, 'p', 'at once') \g /dev/null
SELECT capture.fill() \g /dev/null
UPDATE app.streamed SET note = 'eins' WHERE id = 1;
UPDATE app.streamed SET id = 3 WHERE id = 2;
DELETE FROM app.streamed WHERE id = 3;
INSERT INTO app.reshaped VALUES (1);
ALTER TABLE app.reshaped ADD extra text;
INSERT INTO app.reshaped VALUES (2, 'new');
SELECT capture.fill() \g /dev/null
TRUNCATE app.streamed, app.reshaped;
COMMIT;
SELECT pg_replication_origin_session_reset() \g /dev/null

-- Small enough to wait for its commit.
INSERT INTO app.streamed VALUES (4, 'sad', 'not streamed');

-- One savepoint is released, one rolled back after a part of it was streamed.
BEGIN;
INSERT INTO app.streamed VALUES (5, NULL, 'top');
SAVEPOINT kept;
INSERT INTO app.streamed VALUES (6, NULL, 'released');
RELEASE kept;
SAVEPOINT lost;
SELECT pg_logical_emit_message(true, 'p', 'of a subtransaction') \g /dev/null
INSERT INTO app.streamed VALUES (7, NULL, 'rolled back');
SELECT capture.fill() \g /dev/null
ROLLBACK TO lost;
INSERT INTO app.streamed VALUES (8, NULL, 'after');
COMMIT;

SET logical_decoding_work_mem = '64kB';
\echo '# stream-on'
SELECT capture.changes('stream_on', 'publication_names', 'streamed', 'streaming', 'on');
\echo '# stream-parallel'
SELECT capture.changes('stream_parallel', 'publication_names', 'streamed', 'streaming', 'parallel', 'binary', 'true');

-- A whole streamed transaction is aborted. By the time this is decoded the server knows that it aborted and would not
-- stream it, except in the mode made for tests, where every change is streamed at once.
SET debug_logical_replication_streaming = immediate;
INSERT INTO app.streamed VALUES (9, NULL, 'committed');
BEGIN;
SELECT pg_logical_emit_message(true, 'p', 'aborted') \g /dev/null
INSERT INTO app.streamed VALUES (10, NULL, 'aborted');
ROLLBACK;
-- Nothing waits for an abort to be flushed, and only what is flushed is decoded.
INSERT INTO app.streamed VALUES (11, NULL, 'committed');
\echo '# stream-abort-on'
SELECT capture.changes('stream_on', 'publication_names', 'streamed', 'streaming', 'on');
\echo '# stream-abort-parallel'
SELECT capture.changes('stream_parallel', 'publication_names', 'streamed', 'streaming', 'parallel');
RESET debug_logical_replication_streaming;
SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \g /dev/null

------------------------------------------------------------------------------------------------------------------------
-- Two-phase commit. Decoded between the phases, as a walsender would.

SELECT FROM pg_create_logical_replication_slot('two_phase', 'pgoutput', twophase => true);
SELECT FROM pg_create_logical_replication_slot('two_phase_stream', 'pgoutput', twophase => true);

BEGIN;
INSERT INTO app.streamed VALUES (20, 'ok', 'prepared');
PREPARE TRANSACTION 'gid to commit ü';
BEGIN;
INSERT INTO app.streamed VALUES (21, NULL, 'prepared');
SELECT capture.fill() \g /dev/null
PREPARE TRANSACTION 'gid to roll back';
\echo '# two-phase'
SELECT capture.changes('two_phase', 'publication_names', 'streamed', 'streaming', 'off', 'two_phase', 'true');
\echo '# two-phase-stream'
SELECT capture.changes('two_phase_stream', 'publication_names', 'streamed', 'streaming', 'on', 'two_phase', 'true');

COMMIT PREPARED 'gid to commit ü';
ROLLBACK PREPARED 'gid to roll back';
BEGIN;
INSERT INTO app.streamed VALUES (22, NULL, 'prepared');
SELECT capture.fill() \g /dev/null
PREPARE TRANSACTION 'gid to commit';
\echo '# two-phase'
SELECT capture.changes('two_phase', 'publication_names', 'streamed', 'streaming', 'off', 'two_phase', 'true');
\echo '# two-phase-stream'
SELECT capture.changes('two_phase_stream', 'publication_names', 'streamed', 'streaming', 'on', 'two_phase', 'true');

COMMIT PREPARED 'gid to commit';
\echo '# two-phase'
SELECT capture.changes('two_phase', 'publication_names', 'streamed', 'streaming', 'off', 'two_phase', 'true');
\echo '# two-phase-stream'
SELECT capture.changes('two_phase_stream', 'publication_names', 'streamed', 'streaming', 'on', 'two_phase', 'true');
