//! The shop's working day: a rate and a seed in, committed transactions on A out, and a count of what they did.
//!
//! Several writers work at once, each on a connection, customers and orders of its own, so that none ever waits for
//! another. Every transaction is one chunk of about 1,000 rows.
//!
//! ```text
//!   enough customers? ──no──► register some        then, drawn by weight: take orders (some carts given up at a
//!   enough orders?    ──no──► take some                  savepoint), correct addresses, write notes, customers move,
//!                                                        cancel orders, forget customers, renumber customers, prices
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pgsluice_testkit::Server;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::DATABASE;
use crate::counts::{Counts, Done};
use crate::fake::{Fake, PRODUCTS, Product};
use crate::writer::{Desk, WRITERS};

const SEED: u64 = 20_260_701;

/// How much is written.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// By all writers together.
    pub rows_per_second: u64,
    /// The writers stop once they have written this many, if time has not stopped them before.
    pub rows_max: u64,
}

/// Writers at work. They stop when this is dropped, at a moment of chance.
#[derive(Debug)]
pub struct Load {
    counts: Arc<Counts>,
    closing: watch::Sender<bool>,
    writers: JoinSet<Result<()>>,
}

impl Load {
    /// Stocks the shelves, then opens the shop.
    pub async fn start(a: &Server, limits: Limits) -> Result<Load> {
        let counts = Arc::new(Counts::default());
        let products = Arc::new(stock_products(a, &counts).await?);
        let (closing, _) = watch::channel(false);
        let mut writers = JoinSet::new();
        for number in 0..WRITERS {
            let writer = Writer {
                client: a.connect(DATABASE).await?,
                desk: Desk::new(number, Fake::new(SEED + number), Arc::clone(&products)),
                counts: Arc::clone(&counts),
                closing: closing.subscribe(),
            };
            writers.spawn(writer.work(limits));
        }
        Ok(Load { counts, closing, writers })
    }

    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Lets the writers work for that long, or until they have written what they should; then each ends its
    /// transaction.
    pub async fn finish_after(&mut self, duration: Duration) -> Result<()> {
        let closing_time = tokio::time::sleep(duration);
        tokio::pin!(closing_time);
        loop {
            tokio::select! {
                () = &mut closing_time, if !*self.closing.borrow() => drop(self.closing.send_replace(true)),
                writer = self.writers.join_next() => match writer {
                    Some(result) => result?.context("a writer on A failed")?,
                    None => return Ok(()),
                },
            }
        }
    }
}

struct Writer {
    client: Client,
    desk: Desk,
    counts: Arc<Counts>,
    closing: watch::Receiver<bool>,
}

impl Writer {
    async fn work(mut self, limits: Limits) -> Result<()> {
        let opened_at = Instant::now();
        let rows_per_second = limits.rows_per_second as f64 / WRITERS as f64;
        let mut rows = 0;
        while !*self.closing.borrow() && self.counts.rows() < limits.rows_max {
            let mut transaction = self.client.transaction().await?;
            let done = self.desk.write_chunk(&mut transaction).await?;
            transaction.commit().await?;
            self.counts.add(&done);
            rows += done.rows();
            let due_at = opened_at + Duration::from_secs_f64(rows as f64 / rows_per_second);
            // The shop may close while this writer is ahead of its time.
            tokio::select! {
                () = tokio::time::sleep_until(due_at.into()) => {}
                closing = self.closing.changed() => closing?,
            }
        }
        Ok(())
    }
}

async fn stock_products(a: &Server, counts: &Counts) -> Result<Vec<(i64, Product)>> {
    let mut fake = Fake::new(SEED + WRITERS);
    let products: Vec<_> = (0..PRODUCTS).map(|number| fake.product(number)).collect();
    let names: Vec<_> = products.iter().map(|product| product.name.as_str()).collect();
    let prices: Vec<_> = products.iter().map(|product| product.price.as_str()).collect();
    let client = a.connect(DATABASE).await?;
    let sql = "INSERT INTO app.products (name, price) SELECT name, price::numeric \
               FROM unnest($1::text[], $2::text[]) AS t (name, price) RETURNING product_id";
    let rows = client.query(sql, &[&names, &prices]).await?;
    counts.add(&Done { inserts: rows.len() as u64, ..Done::default() });
    Ok(rows.iter().map(|row| row.get(0)).zip(products).collect())
}
