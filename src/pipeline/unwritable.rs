//! What the publication does to the primary's own users, asked at the start of each session and while one lasts.
//!
//! A table may join the publication, or a partition be attached to one that is in it, at any time after `setup` has asked. The
//! primary refuses UPDATE and DELETE of it from then on, which nobody can take back for its users: so it is said, with the statement
//! that ends it. Changes that do not say which row they are about would be lost on the target: that is refused.

use std::collections::BTreeSet;

use tokio_postgres::Client;

use crate::config::{Config, Role};
use crate::error::{Error, Stage};
use crate::source::writable::{self, Harm, Unwritable};

/// What has been said already, by this engine.
#[derive(Clone, Debug, Default)]
pub(super) struct Said(BTreeSet<String>);

impl Said {
    /// Warns of something once.
    pub fn warn(&mut self, text: String) {
        if !self.0.contains(&text) {
            tracing::warn!("{text}");
            self.0.insert(text);
        }
    }

    /// Warns of tables that the primary refuses to change, each once.
    ///
    /// # Errors
    /// A refusal that names the tables whose changes could not be applied.
    pub async fn check(&mut self, config: &Config, source: &Client, stage: Stage) -> Result<(), Error> {
        let mut found = writable::find(source, Role::Source, &config.publication(), stage).await?;
        if config.only_applies() {
            found.retain(|one| config.tables.selects(&one.root.schema, &one.root.name));
        }
        let (lost, refused): (Vec<_>, Vec<_>) = found.into_iter().partition(|one| one.harm == Harm::NotFound);
        for one in refused {
            self.warn(format!("{one}; on the primary: {}", one.mend()));
        }
        if lost.is_empty() {
            return Ok(());
        }
        let what: Vec<_> = lost.iter().map(Unwritable::to_string).collect();
        let mend: Vec<_> = lost.iter().map(Unwritable::mend).collect();
        let mend = format!(
            "on the primary: {}; what was changed there before that is copied by `pgsluice resync`",
            mend.join("; ")
        );
        Err(Error::refused(stage, what.join("\n"), mend))
    }
}
