//! One writer's desk: the customers and orders that are its own, and the transactions it makes of them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Result;
use tokio_postgres::Transaction;

use crate::counts::Done;
use crate::fake::{Customer, Fake, Product};

pub const WRITERS: u64 = 3;

const CHUNK_ROWS: usize = 1_000;
const CUSTOMERS_MIN: usize = 1_000;
/// Enough that no chunk of changes runs out of orders.
const ORDERS_MIN: usize = 3_000;
/// Their orders change with them, so few customers are many rows.
const CUSTOMERS_WITH_ORDERS: usize = 40;

#[derive(Clone, Copy, Debug)]
enum Chunk {
    RegisterCustomers,
    TakeOrders,
    CorrectAddresses,
    WriteNotes,
    MoveCustomers,
    CancelOrders,
    ForgetCustomers,
    RenumberCustomers,
    ChangePrices,
}

/// In percent.
const WEIGHTS: [(Chunk, usize); 9] = [
    (Chunk::TakeOrders, 44),
    (Chunk::CorrectAddresses, 14),
    (Chunk::WriteNotes, 12),
    (Chunk::CancelOrders, 8),
    (Chunk::MoveCustomers, 6),
    (Chunk::RegisterCustomers, 5),
    (Chunk::RenumberCustomers, 5),
    (Chunk::ForgetCustomers, 3),
    (Chunk::ChangePrices, 3),
];

#[derive(Debug)]
pub struct Desk {
    number: u64,
    fake: Fake,
    products: Arc<Vec<(i64, Product)>>,
    /// The earlier ones order more.
    customers: Vec<i64>,
    orders: Vec<i64>,
    registered: u64,
}

impl Desk {
    pub fn new(number: u64, fake: Fake, products: Arc<Vec<(i64, Product)>>) -> Desk {
        Desk { number, fake, products, customers: Vec::new(), orders: Vec::new(), registered: 0 }
    }

    /// Writes one chunk, for the caller to commit.
    pub async fn write_chunk(&mut self, transaction: &mut Transaction<'_>) -> Result<Done> {
        match self.next_chunk() {
            Chunk::RegisterCustomers => self.register_customers(transaction).await,
            Chunk::TakeOrders => self.take_orders(transaction).await,
            Chunk::CorrectAddresses => self.correct_addresses(transaction).await,
            Chunk::WriteNotes => self.write_notes(transaction).await,
            Chunk::MoveCustomers => self.move_customers(transaction).await,
            Chunk::CancelOrders => self.cancel_orders(transaction).await,
            Chunk::ForgetCustomers => self.forget_customers(transaction).await,
            Chunk::RenumberCustomers => self.renumber_customers(transaction).await,
            Chunk::ChangePrices => self.change_prices(transaction).await,
        }
    }

    fn next_chunk(&mut self) -> Chunk {
        if self.customers.len() < CUSTOMERS_MIN {
            return Chunk::RegisterCustomers;
        }
        if self.orders.len() < ORDERS_MIN {
            return Chunk::TakeOrders;
        }
        let mut drawn = self.fake.below(WEIGHTS.iter().map(|(_, weight)| weight).sum());
        for (chunk, weight) in WEIGHTS {
            if drawn < weight {
                return chunk;
            }
            drawn -= weight;
        }
        unreachable!("a number below the sum of the weights falls into one of them")
    }

    async fn register_customers(&mut self, transaction: &Transaction<'_>) -> Result<Done> {
        let mut customers = Vec::new();
        for _ in 0..CHUNK_ROWS {
            self.registered += 1;
            customers.push(self.fake.customer(&format!("{}-{}", self.number, self.registered)));
        }
        let column = |text: fn(&Customer) -> &str| customers.iter().map(text).collect::<Vec<_>>();
        let names = column(|customer| &customer.full_name);
        let emails = column(|customer| &customer.email);
        let cities = column(|customer| &customer.city);
        let phones: Vec<_> = customers.iter().map(|customer| customer.phone.as_deref()).collect();
        let registered: Vec<_> = customers.iter().map(|customer| customer.registered_at).collect();
        let sql = "INSERT INTO app.customers (full_name, email, phone, city, registered_at) SELECT * \
                   FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[]) \
                   RETURNING customer_id";
        let rows = transaction.query(sql, &[&names, &emails, &phones, &cities, &registered]).await?;
        self.customers.extend(rows.iter().map(|row| row.get::<_, i64>(0)));
        Ok(Done { inserts: rows.len() as u64, ..Done::default() })
    }

    /// A chunk of orders; now and then more follow that are given up.
    async fn take_orders(&mut self, transaction: &mut Transaction<'_>) -> Result<Done> {
        let cart = self.cart(CHUNK_ROWS);
        let orders = cart.insert(transaction).await?;
        let mut done = Done { inserts: orders.len() as u64, ..Done::default() };
        if self.fake.one_in(3) {
            let given_up = self.cart(CHUNK_ROWS / 5);
            let savepoint = transaction.savepoint("cart").await?;
            given_up.insert(&savepoint).await?;
            let changed = "UPDATE app.orders SET order_misc_notes = 'never to be seen' WHERE order_id = ANY($1)";
            savepoint.execute(changed, &[&orders]).await?;
            savepoint.rollback().await?;
            done.rollbacks = 1;
        }
        self.orders.extend(orders);
        Ok(done)
    }

    fn cart(&mut self, rows: usize) -> Cart {
        let mut cart = Cart::default();
        for _ in 0..rows {
            let order = self.fake.order();
            let (product_id, product) = &self.products[self.fake.early(self.products.len())];
            cart.customer_ids.push(self.customers[self.fake.early(self.customers.len())]);
            cart.product_ids.push(*product_id);
            cart.descriptions.push(format!("{}, {}", product.name, order.colour));
            cart.addresses.push(order.address);
            cart.taken_at.push(order.taken_at);
            cart.notes.push(order.notes);
        }
        cart
    }

    /// Leaves large notes alone: PostgreSQL does not send them again.
    async fn correct_addresses(&mut self, transaction: &Transaction<'_>) -> Result<Done> {
        let ids = self.some_orders();
        let addresses: Vec<_> = ids.iter().map(|_| self.fake.address()).collect();
        let sql = "UPDATE app.orders SET order_delivery_address = t.address \
                   FROM unnest($1::bigint[], $2::text[]) AS t (id, address) WHERE order_id = t.id";
        Ok(Done { updates: transaction.execute(sql, &[&ids, &addresses]).await?, ..Done::default() })
    }

    /// Adds a note to what is there, or wipes all.
    async fn write_notes(&mut self, transaction: &Transaction<'_>) -> Result<Done> {
        let ids = self.some_orders();
        let notes: Vec<_> = ids.iter().map(|_| (!self.fake.one_in(10)).then(|| self.fake.note())).collect();
        let sql = "UPDATE app.orders SET order_misc_notes = \
                       CASE WHEN t.note IS NOT NULL THEN concat_ws('; ', order_misc_notes, t.note) END \
                   FROM unnest($1::bigint[], $2::text[]) AS t (id, note) WHERE order_id = t.id";
        Ok(Done { updates: transaction.execute(sql, &[&ids, &notes]).await?, ..Done::default() })
    }

    async fn move_customers(&mut self, transaction: &Transaction<'_>) -> Result<Done> {
        let start = self.fake.below(self.customers.len() - CUSTOMERS_MIN / 2);
        let ids = &self.customers[start..(start + CHUNK_ROWS).min(self.customers.len())];
        let cities: Vec<_> = ids.iter().map(|_| self.fake.city()).collect();
        let sql = "UPDATE app.customers SET city = t.city FROM unnest($1::bigint[], $2::text[]) AS t (id, city) \
                   WHERE customer_id = t.id";
        Ok(Done { updates: transaction.execute(sql, &[&ids, &cities]).await?, ..Done::default() })
    }

    async fn cancel_orders(&mut self, transaction: &Transaction<'_>) -> Result<Done> {
        let mut ids = Vec::new();
        for _ in 0..CHUNK_ROWS {
            let index = self.fake.below(self.orders.len());
            ids.push(self.orders.swap_remove(index));
        }
        let deletes = transaction.execute("DELETE FROM app.orders WHERE order_id = ANY($1)", &[&ids]).await?;
        Ok(Done { deletes, ..Done::default() })
    }

    /// Deletes customers with all that they have ordered.
    async fn forget_customers(&mut self, transaction: &Transaction<'_>) -> Result<Done> {
        let start = self.fake.below(self.customers.len() - CUSTOMERS_WITH_ORDERS);
        let ids: Vec<_> = self.customers.drain(start..start + CUSTOMERS_WITH_ORDERS).collect();
        let sql = "DELETE FROM app.orders WHERE customer_id = ANY($1) RETURNING order_id";
        let orders: HashSet<i64> = transaction.query(sql, &[&ids]).await?.iter().map(|row| row.get(0)).collect();
        self.orders.retain(|id| !orders.contains(id));
        let customers = transaction.execute("DELETE FROM app.customers WHERE customer_id = ANY($1)", &[&ids]).await?;
        Ok(Done { deletes: orders.len() as u64 + customers, ..Done::default() })
    }

    /// Changes primary keys; the foreign key's cascade changes the orders.
    async fn renumber_customers(&mut self, transaction: &Transaction<'_>) -> Result<Done> {
        let start = self.fake.below(self.customers.len() - CUSTOMERS_WITH_ORDERS);
        let ids = &mut self.customers[start..start + CUSTOMERS_WITH_ORDERS];
        let sql = "SELECT nextval(pg_get_serial_sequence('app.customers', 'customer_id')) \
                   FROM generate_series(1, $1::bigint)";
        let rows = transaction.query(sql, &[&(ids.len() as i64)]).await?;
        let new_ids: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        let sql = "UPDATE app.customers SET customer_id = t.new_id \
                   FROM unnest($1::bigint[], $2::bigint[]) AS t (old_id, new_id) WHERE customer_id = t.old_id";
        let key_updates = transaction.execute(sql, &[&&*ids, &new_ids]).await?;
        ids.copy_from_slice(&new_ids);
        let sql = "SELECT count(*) FROM app.orders WHERE customer_id = ANY($1)";
        let cascaded: i64 = transaction.query_one(sql, &[&new_ids]).await?.get(0);
        Ok(Done { updates: key_updates + cascaded.unsigned_abs(), key_updates, ..Done::default() })
    }

    /// Of this writer's share of the products, so that two writers never wait for each other.
    async fn change_prices(&mut self, transaction: &Transaction<'_>) -> Result<Done> {
        let ids: Vec<_> =
            self.products.iter().map(|(id, _)| *id).filter(|id| id.unsigned_abs() % WRITERS == self.number).collect();
        let percent = 95 + self.fake.below(11) as i32;
        let sql = "UPDATE app.products SET price = greatest(round(price * $2::integer / 100, 2), 1) \
                   WHERE product_id = ANY($1)";
        Ok(Done { updates: transaction.execute(sql, &[&ids, &percent]).await?, ..Done::default() })
    }

    fn some_orders(&mut self) -> Vec<i64> {
        let start = self.fake.below(self.orders.len() - CHUNK_ROWS + 1);
        self.orders[start..start + CHUNK_ROWS].to_vec()
    }
}

/// Orders by column, as one statement takes them.
#[derive(Debug, Default)]
struct Cart {
    customer_ids: Vec<i64>,
    product_ids: Vec<i64>,
    descriptions: Vec<String>,
    addresses: Vec<String>,
    taken_at: Vec<SystemTime>,
    notes: Vec<Option<String>>,
}

impl Cart {
    async fn insert(&self, transaction: &Transaction<'_>) -> Result<Vec<i64>> {
        let Cart { customer_ids, product_ids, descriptions, addresses, taken_at, notes } = self;
        let sql = "INSERT INTO app.orders (customer_id, product_id, product_description, order_delivery_address, \
                       order_date_taken, order_misc_notes) SELECT * \
                   FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::timestamptz[], $6::text[]) \
                   RETURNING order_id";
        let rows =
            transaction.query(sql, &[customer_ids, product_ids, descriptions, addresses, taken_at, notes]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}
