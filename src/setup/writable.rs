//! Refuses a publication under which the primary would refuse the statements of its own users.

use super::STAGE;
use crate::config::{Config, Pattern, Role};
use crate::error::Error;
use crate::postgres::quote_ident;
use crate::source::publication::{self, Publication, PublishedTable, TableName};
use crate::source::writable::{self, Harm, Unwritable};
use tokio_postgres::Client;

/// Checks the tables under the publication as the server has it, or as it is going to be made.
///
/// # Errors
/// A refusal that names every table whose UPDATE and DELETE would not get through, but for those that somebody has `allowed` to
/// be like that.
pub(super) async fn check(
    (client, role): (&Client, Role),
    config: &Config,
    tables: &[PublishedTable],
    allowed: &[Pattern],
) -> Result<Vec<Unwritable>, Error> {
    let name = config.publication();
    let mut found = if Publication::read(client, role, &name, STAGE).await?.is_some() {
        writable::find(client, role, &name, STAGE).await?
    } else {
        writable::foresee(client, role, tables, STAGE).await?
    };
    let is_heartbeat = |table: &TableName| (table.schema.as_str(), table.name.as_str()) == publication::HEARTBEAT;
    let is_ours = |table: &TableName| is_heartbeat(table) || config.tables.selects(&table.schema, &table.name);
    found.retain(|one| is_ours(&one.root));
    // Whoever only takes from a trail publishes nothing: what the primary refuses, it refuses already.
    let is_allowed = |one: &Unwritable| match one.harm {
        Harm::Refused => config.only_applies() || one.is_allowed(allowed),
        Harm::NotFound => false,
    };
    let (allowed, refused): (Vec<_>, Vec<_>) = found.into_iter().partition(is_allowed);
    if refused.is_empty() { Ok(allowed) } else { Err(refusal(&refused)) }
}

fn refusal(refused: &[Unwritable]) -> Error {
    let what: Vec<_> = refused.iter().map(Unwritable::to_string).collect();
    let mut statements: Vec<_> = refused.iter().flat_map(|one| one.mend().split("; ")).collect();
    let mut seen = std::collections::HashSet::new();
    statements.retain(|statement| seen.insert(*statement));
    let mut mend = format!("on the primary: {}; then run setup again", statements.join("; "));
    let mut roots: Vec<_> = refused.iter().filter(|one| one.harm == Harm::Refused).map(|one| &one.root).collect();
    roots.dedup();
    if !roots.is_empty() {
        let flags: Vec<_> = roots.into_iter().map(|root| format!(" --allow-unwritable {}", argument(root))).collect();
        mend = format!(
            "{mend}. Tables that only ever get INSERTs may stay as they are: `pgsluice setup{}`",
            flags.concat()
        );
    }
    Error::refused(STAGE, what.join("\n"), mend)
}

/// As a shell takes a pattern that means this table.
fn argument(table: &TableName) -> String {
    let is_plain = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    let part = |name: &str| if is_plain(name) { name.to_owned() } else { quote_ident(name) };
    let pattern = format!("{}.{}", part(&table.schema), part(&table.name));
    if pattern.contains('"') { format!("'{}'", pattern.replace('\'', "'\\''")) } else { pattern }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_of_any_name_means_that_table_in_a_shell() {
        let argument = |schema: &str, name: &str| argument(&TableName { schema: schema.into(), name: name.into() });
        assert_eq!(argument("public", "log"), "public.log");
        assert_eq!(argument("public", "l*g"), "'public.\"l*g\"'");
        assert_eq!(argument("it's", "a \"b\""), "'\"it'\\''s\".\"a \"\"b\"\"\"'");
    }
}
