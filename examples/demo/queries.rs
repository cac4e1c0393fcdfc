//! Three analytic queries over the shop: run on A and on C, they have to give the same answers to the last digit.

use anyhow::{Context, Result};
use pgsluice_testkit::{Chain, Server};

use crate::DATABASE;
use crate::fake::today;

/// `$1` is the day that stands for today. All columns are text, so that two answers are equal only if they read alike;
/// every order is total, so that equal rows come in equal order.
struct Query {
    title: &'static str,
    sql: &'static str,
}

const QUERIES: [Query; 3] = [
    Query {
        title: "Top customers of the last six months",
        sql: "SELECT c.full_name, c.city, count(*)::text || ' orders', sum(p.price)::text || ' €' \
              FROM app.orders o JOIN app.customers c USING (customer_id) JOIN app.products p USING (product_id) \
              WHERE o.order_date_taken >= $1::timestamptz - interval '6 months' AND o.order_date_taken < $1 \
              GROUP BY c.customer_id ORDER BY sum(p.price) DESC, c.customer_id LIMIT 100",
    },
    Query {
        title: "Commonest address prefixes",
        sql: "SELECT split_part(order_delivery_address, ',', 1), count(*)::text || ' orders' FROM app.orders \
              WHERE order_date_taken < $1::timestamptz \
              GROUP BY 1 ORDER BY count(*) DESC, split_part(order_delivery_address, ',', 1) COLLATE \"C\"",
    },
    Query {
        title: "Monthly trend by product",
        sql: "WITH monthly AS ( \
                  SELECT product_id, date_trunc('month', order_date_taken) AS month, count(*) AS orders \
                  FROM app.orders WHERE order_date_taken < $1::timestamptz GROUP BY 1, 2), \
              trend AS ( \
                  SELECT *, orders - lag(orders) OVER (PARTITION BY product_id ORDER BY month) AS change, \
                      sum(orders) OVER (PARTITION BY product_id) AS total FROM monthly) \
              SELECT p.name, to_char(month, 'YYYY-MM'), orders::text || ' orders', \
                  to_char(change, 'SGFM999999') \
              FROM trend JOIN app.products p USING (product_id) ORDER BY total DESC, product_id, month DESC",
    },
];

type Row = Vec<Option<String>>;

/// One query's answers on both servers.
#[derive(Debug)]
pub struct Answers {
    pub title: &'static str,
    pub on_a: Vec<Row>,
    pub on_c: Vec<Row>,
}

impl Answers {
    pub fn are_equal(&self) -> bool {
        self.on_a == self.on_c
    }
}

/// Asks A and C the same questions.
pub async fn ask(chain: &Chain) -> Result<Vec<Answers>> {
    let mut all = Vec::new();
    for Query { title, sql } in QUERIES {
        let (on_a, on_c) = tokio::try_join!(rows(&chain.a, sql), rows(&chain.c, sql)).context(title)?;
        all.push(Answers { title, on_a, on_c });
    }
    Ok(all)
}

async fn rows(server: &Server, sql: &str) -> Result<Vec<Row>> {
    let client = server.connect(DATABASE).await?;
    client.batch_execute("SET TimeZone = 'UTC'").await?;
    let rows = client.query(sql, &[&today()]).await?;
    let text = |row: &tokio_postgres::Row| (0..row.len()).map(|column| row.try_get(column)).collect();
    rows.iter().map(text).collect::<Result<_, _>>().context("a column that is not text")
}
