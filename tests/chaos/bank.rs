//! A bank: transfers between accounts, each written down. What is lost, doubled or torn shows in the sums.
//!
//! **Always holds**, on A and on C, in every snapshot: balances sum up to nothing; each transfer is written down once in
//! the ledger, once in a journal without key, and counted at both accounts.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::compare::check_same;
use pgsluice_testkit::{Chain, Proxy, Random, SmallDisk, wait_for};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

use crate::{DATABASE, Stage};

const CLIENTS: u64 = 4;
const ACCOUNTS: u64 = 1_000;
const TABLES: [&str; 4] = ["public.accounts", "public.ledger", "public.journal", "public.papers"];
/// For servers to be up and C to have all.
const DEADLINE: Duration = Duration::from_secs(180);
const TRANSFER_PAUSE_MAX: Duration = Duration::from_millis(15);

/// The tables of C lie on `disk`, where there is one.
pub async fn create(chain: &Chain, disk: Option<&SmallDisk>) -> Result<()> {
    let tables = |tablespace: &str| {
        format!(
            "CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL DEFAULT 0, transfers bigint NOT NULL DEFAULT 0){tablespace};
             CREATE TABLE ledger (client bigint, n bigint, payer bigint, payee bigint, amount bigint, note text, PRIMARY KEY (client, n)){tablespace};
             CREATE TABLE journal (client bigint, n bigint){tablespace}; ALTER TABLE journal REPLICA IDENTITY FULL;
             CREATE TABLE papers (id bigint PRIMARY KEY, body text, seen bigint NOT NULL DEFAULT 0){tablespace};
             ALTER TABLE papers ALTER body SET STORAGE EXTERNAL;"
        )
    };
    chain.a.sql(DATABASE, &tables("")).await?;
    let tablespace = match disk {
        Some(disk) => {
            chain.c.sql("postgres", &format!("CREATE TABLESPACE small LOCATION '{}'", disk.path().display())).await?;
            " TABLESPACE small"
        }
        None => "",
    };
    chain.c.sql(DATABASE, &tables(tablespace)).await?;
    let rows = format!(
        "INSERT INTO accounts SELECT generate_series(1, {ACCOUNTS});
         INSERT INTO papers SELECT g, repeat(md5(g::text), 100) FROM generate_series(1, 200) g"
    );
    chain.a.sql(DATABASE, &rows).await?;
    chain.wait_b_caught_up().await
}

pub struct Bank {
    clients: Vec<JoinHandle<Result<()>>>,
    shared: Arc<Shared>,
    /// Leads to whichever server is C.
    on_c: String,
}

/// What the clients are told, and what they tell.
#[derive(Debug, Default)]
struct Shared {
    closed: AtomicBool,
    stands: AtomicBool,
    /// Clients that have seen that they are to stand.
    standing: AtomicU64,
    transfers: AtomicU64,
    looks: AtomicU64,
}

#[derive(Debug)]
pub struct Figures {
    transfers: u64,
    looks: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} transfers, {} looks at C beside them", self.transfers, self.looks)
    }
}

impl Bank {
    /// Starts its clients.
    pub async fn open(chain: &Chain, to_target: &Proxy) -> Result<Bank> {
        let shared = Arc::new(Shared::default());
        let clients = (0..CLIENTS).map(|client| {
            let (dsn, shared) = (chain.a.dsn(DATABASE), shared.clone());
            tokio::spawn(async move { serve(client, &dsn, &shared).await })
        });
        Ok(Bank { clients: clients.collect(), shared, on_c: to_target.dsn(DATABASE) })
    }

    /// Looks at C as it is now, if it can be reached.
    pub async fn check_beside(&self) -> Result<()> {
        ensure!(self.clients.iter().all(|client| !client.is_finished()), "a client has ended");
        let Ok(client) = connect(&self.on_c).await else { return Ok(()) };
        let sums = "SELECT coalesce(sum(balance), 0)::bigint, (coalesce(sum(transfers), 0) / 2)::bigint, (SELECT count(*) FROM ledger), \
                        (SELECT count(DISTINCT (client, n)) FROM journal), (SELECT count(*) FROM journal) FROM accounts";
        // C may go down meanwhile.
        let Ok(row) = client.query_one(sums, &[]).await else { return Ok(()) };
        let found: Vec<i64> = (0..5).map(|column| row.try_get(column)).collect::<Result<_, _>>()?;
        let [balance, transfers, ledger, distinct, journal] = found.as_slice() else { unreachable!("five columns") };
        ensure!(
            *balance == 0 && [ledger, distinct, journal].iter().all(|count| *count == transfers),
            "C is torn: balances {balance}, transfers {transfers}, ledger {ledger}, journal {journal} with {distinct} distinct"
        );
        self.shared.looks.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Lets the clients stand, waits until C has all, and compares every row.
    pub async fn compare(&self, stage: &mut Stage) -> Result<()> {
        self.shared.stands.store(true, Ordering::Release);
        wait_for("the clients to stand", DEADLINE, || async {
            Ok((self.shared.standing.load(Ordering::Acquire) == CLIENTS).then_some(()))
        })
        .await?;
        let position = stage.chain.a.scalar(DATABASE, "SELECT pg_current_wal_lsn()").await?;
        let reached = format!(
            "SELECT end_lsn >= '{position}' AND NOT EXISTS (SELECT FROM pgsluice.table_state WHERE state <> 'ready') \
             FROM pgsluice.progress WHERE name = 'chaos'"
        );
        let start = Instant::now();
        loop {
            stage.engines.look_after().await?;
            if stage.chain.c.scalar(DATABASE, &reached).await? == "t" {
                break;
            }
            let said = || stage.engines.running().stderr();
            ensure!(start.elapsed() < DEADLINE, "C does not come to {position}:\n{}", said());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        stage.chain.wait_b_caught_up().await?;
        check_same(&stage.chain.b, &stage.chain.c, DATABASE, &TABLES).await?;
        stage.engines.found_equal();
        self.check_beside().await?;
        self.shared.stands.store(false, Ordering::Release);
        Ok(())
    }

    pub async fn close(self) -> Result<Figures> {
        self.shared.closed.store(true, Ordering::Release);
        for client in self.clients {
            client.await??;
        }
        let Shared { transfers, looks, .. } = &*self.shared;
        let [transfers, looks] = [transfers, looks].map(|count| count.load(Ordering::Acquire));
        ensure!(transfers > 0 && looks > 0, "nothing was tried");
        Ok(Figures { transfers, looks })
    }
}

async fn connect(dsn: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Transfers until the bank is closed. A is away now and then; what it did of the last transfer then it says itself.
async fn serve(client: u64, dsn: &str, shared: &Shared) -> Result<()> {
    let mut random = Random::seeded(client);
    let mut session = None;
    let mut n = 0;
    while !shared.closed.load(Ordering::Acquire) {
        if shared.stands.load(Ordering::Acquire) {
            shared.standing.fetch_add(1, Ordering::AcqRel);
            while shared.stands.load(Ordering::Acquire) && !shared.closed.load(Ordering::Acquire) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            shared.standing.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let open: &Client = match session.take_if(|open: &mut Client| !open.is_closed()) {
            Some(open) => session.insert(open),
            None => match connect(dsn).await {
                Ok(open) => {
                    let last = "SELECT coalesce(max(n), 0) FROM ledger WHERE client = $1";
                    let Ok(row) = open.query_one(last, &[&client.cast_signed()]).await else { continue };
                    n = row.try_get::<_, i64>(0)?.unsigned_abs();
                    session.insert(open)
                }
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        n += 1;
        let sql = transaction(client, n, &mut random);
        match open.batch_execute(&sql).await {
            Ok(()) => drop(shared.transfers.fetch_add(1, Ordering::Relaxed)),
            // Two that pay each other at once: one of them is tried again, as after a crash.
            Err(error) if error.is_closed() || error.code().is_some() => session = None,
            Err(error) => return Err(error).context(sql),
        }
        random.pause(TRANSFER_PAUSE_MAX).await;
    }
    Ok(())
}

/// One transaction on A: a transfer, mostly alone.
fn transaction(client: u64, n: u64, random: &mut Random) -> String {
    let (payer, payee, amount) = (random.below(ACCOUNTS) + 1, random.below(ACCOUNTS) + 1, random.below(1_000));
    let transfer = format!(
        "UPDATE accounts SET balance = balance - {amount}, transfers = transfers + 1 WHERE id = {payer};
         UPDATE accounts SET balance = balance + {amount}, transfers = transfers + 1 WHERE id = {payee};
         INSERT INTO ledger VALUES ({client}, {n}, {payer}, {payee}, {amount}, repeat('x', {}));
         INSERT INTO journal VALUES ({client}, {n});",
        random.below(400)
    );
    let more = match random.below(20) {
        0 => "UPDATE papers SET seen = seen + 1 WHERE id % 10 = 3;",
        1 => "UPDATE papers SET id = -id WHERE abs(id) % 20 = 7;",
        2 => {
            "UPDATE papers SET body = repeat(md5(seen::text), 100) WHERE id % 50 = 9; UPDATE papers SET seen = seen + 1 WHERE id % 50 = 9;"
        }
        3 => "SAVEPOINT s; UPDATE accounts SET balance = balance + 1; ROLLBACK TO s;",
        4 => "SAVEPOINT s; DELETE FROM ledger; TRUNCATE papers; ROLLBACK TO s;",
        // Larger than a batch, so that it is applied in parts.
        5 => {
            "UPDATE accounts SET balance = balance + 1 WHERE id <= 500; UPDATE accounts SET balance = balance - 1 WHERE id > 500;"
        }
        6 => "DELETE FROM papers WHERE id = 100; INSERT INTO papers VALUES (100, repeat('y', 3000));",
        _ => "",
    };
    format!("BEGIN; {transfer} {more} COMMIT")
}
