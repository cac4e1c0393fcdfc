//! Makes a plan of what rules decide about one relation, once for each description of it.
//!
//! In: the relation, and the decisions. Out: a [`Plan`], or the first rule that does not fit, with its place and its mend.

use std::sync::Arc;

use pgsluice_proto::Oid;
use pgsluice_proto::pgoutput::{Cell, ReplicaIdentity};

use super::decide::{ColumnDecisions, Decisions};
use super::expression::Expression;
use super::expression::types::Type;
use super::mask::{Masking, Promises};
use super::metadata;
use super::plan::{How, MaskedType, Output, Plan};
use super::refusal::RuleError;
use crate::config::{Mask, Rule};
use crate::decode::{Column, Keys, Relation};
use crate::postgres::{quote_ident, quote_literal};

type Outcome<T> = Result<T, Box<RuleError>>;

/// # Errors
/// The first rule that does not fit the relation.
pub(super) fn compile(decisions: &Decisions<'_>, relation: &Relation) -> Outcome<Plan> {
    let columns = relation.columns.iter().map(|column| (column.name.clone(), column.type_oid)).collect();
    let compiler = Compiler { decisions, relation, columns };
    let filter = compiler.filter()?;
    let (columns, outputs) = compiler.outputs()?;
    let is_whole = outputs.len() == relation.columns.len();
    let as_it_came = |(at, output): (usize, &Output)| matches!(output.how, How::Cell(column) if column == at);
    let keeps_rows = filter.is_none() && is_whole && outputs.iter().enumerate().all(as_it_came);
    let is_of_commit = |index: &usize| index.checked_sub(relation.columns.len()).is_some_and(metadata::is_of_commit);
    let reads_commit = |output: &Output| match &output.how {
        How::Compute(expression) => expression.columns().iter().any(is_of_commit),
        How::Cell(_) | How::Mask { .. } | How::Fixed { .. } => false,
    };
    let reads_commit = outputs.iter().any(reads_commit);
    Ok(Plan {
        target: Arc::new(compiler.target(columns, &outputs)?),
        source: Arc::new(relation.clone()),
        filter,
        outputs,
        keeps_rows: keeps_rows && decisions.soft_delete.is_none(),
        soft_delete: decisions.soft_delete.is_some(),
        reads_commit,
        filter_text: decisions.filter.map(|(_, text)| text.to_owned()),
    })
}

struct Compiler<'c, 'r> {
    decisions: &'c Decisions<'r>,
    relation: &'c Relation,
    /// Names and types, as expressions take them.
    columns: Vec<(String, Oid)>,
}

impl Compiler<'_, '_> {
    fn refuse<T>(&self, rule: &Rule, what: impl Into<String>, mend: impl Into<String>) -> Outcome<T> {
        Err(RuleError::new(rule, self.relation, what, mend))
    }

    fn filter(&self) -> Outcome<Option<Expression>> {
        let Some((rule, text)) = self.decisions.filter else { return Ok(None) };
        let failed = |error| RuleError::expression(rule, self.relation, "where", text, error);
        let filter = Expression::parse(text, &self.columns).map_err(failed)?;
        if filter.type_oid() != Type::Bool.oid() {
            let of = Type::from_oid(filter.type_oid()).map_or("of another type", Type::name);
            return self.refuse(
                rule,
                format!("where: a condition is boolean, and this is {of}"),
                "compare it with something",
            );
        }
        let outside: Vec<_> = filter.columns().iter().filter(|&&column| !self.is_known_of_old_rows(column)).collect();
        if !outside.is_empty() {
            let names: Vec<_> = outside.iter().map(|&&column| quote_ident(&self.columns[column].0)).collect();
            return self.refuse(
                rule,
                format!(
                    "where: updates and deletes come without the old value of {}, which is not in the replica identity",
                    names.join(", ")
                ),
                format!("on the primary: ALTER TABLE {} REPLICA IDENTITY FULL", self.relation),
            );
        }
        Ok(Some(filter))
    }

    /// Whether updates and deletes, if there are any, come with the value that this column had.
    fn is_known_of_old_rows(&self, column: usize) -> bool {
        let columns = &self.relation.columns;
        match self.relation.replica_identity {
            ReplicaIdentity::Full => true,
            // Without an identity the source takes no update or delete at all.
            ReplicaIdentity::Nothing => true,
            ReplicaIdentity::Default | ReplicaIdentity::Index => {
                columns[column].is_identity || !columns.iter().any(|column| column.is_identity)
            }
        }
    }

    fn is_key(&self, column: usize) -> bool {
        self.relation.replica_identity != ReplicaIdentity::Full && self.relation.columns[column].is_identity
    }

    /// The columns of the target, and what they are made of.
    fn outputs(&self) -> Outcome<(Vec<Column>, Vec<Output>)> {
        let mut made: Vec<(Column, Output, Option<&Rule>)> = Vec::new();
        let set = |name: &str| self.decisions.set.iter().any(|(other, _)| *other == name);
        for (position, decided) in self.decisions.columns.iter().enumerate() {
            let source = &self.relation.columns[position];
            if let Some((rule, false)) = decided.stays {
                if self.is_key(position) && !set(&self.name_on_target(position)) && self.decisions.key.is_none() {
                    let what = format!("column \"{}\" is dropped, and rows are found by it", source.name);
                    return self.refuse(rule, what, "keep it; it is part of the replica identity");
                }
                continue;
            }
            let name = self.name_on_target(position);
            if set(&name) {
                self.check_replaced(decided, &name)?;
                continue;
            }
            let (type_oid, output) = self.output(position, decided)?;
            let rename = decided.rename.map(|(rule, _)| rule);
            if let Some((column, _, other)) = made.iter().find(|(column, _, _)| column.name == name) {
                let what = format!("two columns would have the name \"{}\"", column.name);
                return match rename.or(*other) {
                    Some(rule) => self.refuse(rule, what, "rename one of them to something else"),
                    None => unreachable!("columns of a table have different names"),
                };
            }
            let type_modifier = match output.how {
                How::Cell(position) => self.relation.columns[position].type_modifier,
                How::Mask { .. } | How::Compute(_) | How::Fixed { .. } => None,
            };
            let column = Column { name, type_oid, type_modifier, is_identity: output.is_identity };
            made.push((column, output, rename));
        }
        for (name, text) in &self.decisions.set {
            let Some((rule, text)) = text else { continue };
            let (type_oid, output) = self.computed(rule, name, text)?;
            let type_oid = self.text_type_of(name).filter(|_| is_text(type_oid)).unwrap_or(type_oid);
            let column =
                Column { name: (*name).to_owned(), type_oid, type_modifier: None, is_identity: output.is_identity };
            made.push((column, output, None));
        }
        let (mut columns, mut outputs): (Vec<_>, Vec<_>) =
            made.into_iter().map(|(column, output, _)| (column, output)).unzip();
        self.mark_key(&mut columns, &mut outputs)?;
        self.check_soft_delete(&outputs)?;
        Ok((columns, outputs))
    }

    /// A `set` that replaces the column's value must not undo what another rule does to it.
    fn check_replaced(&self, decided: &ColumnDecisions<'_>, name: &str) -> Outcome<()> {
        let other = decided.mask.map(|(rule, _)| (rule, "masked")).or(decided.cast.map(|(rule, _)| (rule, "cast")));
        let Some((rule, done)) = other else { return Ok(()) };
        let what = format!("column \"{name}\" is {done}, and set to an expression as well");
        self.refuse(rule, what, "keep one of the two")
    }

    /// What a column of the source is called on the target.
    fn name_on_target(&self, position: usize) -> String {
        let name = &self.relation.columns[position].name;
        self.decisions.columns[position].rename.map_or_else(|| name.clone(), |(_, renaming)| renaming.apply(name))
    }

    /// The columns of the source that have this name on the target, or would have.
    fn named<'n>(&'n self, name: &'n str) -> impl Iterator<Item = &'n Column> {
        let columns = self.relation.columns.iter().enumerate();
        columns.filter(move |(position, _)| self.name_on_target(*position) == name).map(|(_, column)| column)
    }

    /// The type of the text column that a `set` of this name replaces: its values have the same bytes.
    fn text_type_of(&self, name: &str) -> Option<Oid> {
        self.named(name).map(|column| column.type_oid).find(|type_oid| is_text(*type_oid))
    }

    fn output(&self, position: usize, decided: &ColumnDecisions<'_>) -> Outcome<(Oid, Output)> {
        let column = &self.relation.columns[position];
        match (decided.mask, decided.cast) {
            (Some((rule, _)), Some(_)) => {
                let what = format!("column \"{}\" is masked and cast", column.name);
                self.refuse(rule, what, "keep one of the two")
            }
            (Some((rule, mask)), None) => self.masked(rule, position, mask),
            (None, Some((rule, to))) => {
                let text = format!("CAST({} AS {to})", quote_ident(&column.name));
                let failed = |error| RuleError::expression(rule, self.relation, "cast", &text, error);
                let expression = Expression::parse(&text, &self.columns).map_err(failed)?;
                let (type_oid, output) =
                    self.of_expression(rule, (&column.name, column.is_identity), &text, expression)?;
                Ok((type_oid, Output { column: Some(position), ..output }))
            }
            (None, None) => Ok((
                column.type_oid,
                Output {
                    how: How::Cell(position),
                    column: Some(position),
                    is_identity: column.is_identity,
                    is_stable: true,
                    reads: vec![position],
                    said: quote_ident(&column.name),
                },
            )),
        }
    }

    fn masked(&self, rule: &Rule, position: usize, mask: &Mask) -> Outcome<(Oid, Output)> {
        let column = &self.relation.columns[position];
        let name = quote_ident(&column.name);
        if self.is_key(position) && !mask.keeps_apart() {
            let what = format!("mask: rows are found by column {name}, and {} makes values the same", mask.name());
            return self.refuse(rule, what, "mask it by hmac_sha256, sha256 or email, which keep values apart");
        }
        let parse = |text: &str| {
            let failed = |error| RuleError::expression(rule, self.relation, "mask", text, error);
            Expression::parse(text, &self.columns).map_err(failed)
        };
        let masking = Masking::new(mask);
        let is_hash = matches!(mask, Mask::Sha256 { .. } | Mask::HmacSha256 { .. });
        let (type_oid, how) = match mask {
            Mask::Null => (column.type_oid, How::Mask { column: position, mask: masking, of: MaskedType::Any }),
            Mask::Fixed(value) if !is_text(column.type_oid) => {
                let of = Type::from_oid(column.type_oid).ok_or_else(|| self.unmaskable(rule, &name, mask))?;
                let constant = parse(&format!("CAST({} AS {})", quote_literal(value), of.name()))?;
                (column.type_oid, How::Fixed { column: position, value: constant_of(&constant) })
            }
            Mask::Fixed(_) => (column.type_oid, How::Mask { column: position, mask: masking, of: MaskedType::Any }),
            _ if is_text(column.type_oid) => {
                let of = if column.type_oid == Type::Bpchar.oid() { MaskedType::Padded } else { MaskedType::Text };
                (column.type_oid, How::Mask { column: position, mask: masking, of })
            }
            _ if is_hash && Type::from_oid(column.type_oid).is_some() => {
                let of = MaskedType::Other(parse(&name)?);
                (Type::Text.oid(), How::Mask { column: position, mask: masking, of })
            }
            _ => return Err(self.unmaskable(rule, &name, mask)),
        };
        let output = Output {
            how,
            column: Some(position),
            is_identity: column.is_identity && mask.is_stable(),
            is_stable: mask.is_stable(),
            reads: vec![position],
            said: format!("{name} masked: {}", mask.name()),
        };
        Ok((type_oid, output))
    }

    fn unmaskable(&self, rule: &Rule, name: &str, mask: &Mask) -> Box<RuleError> {
        let what = format!("mask: {} cannot mask column {name}, whose type is not text", mask.name());
        RuleError::new(rule, self.relation, what, "mask it by null, or drop the column")
    }

    fn computed(&self, rule: &Rule, name: &str, text: &str) -> Outcome<(Oid, Output)> {
        let columns: Vec<_> = self.columns.iter().cloned().chain(metadata::columns()).collect();
        let key = format!("set of \"{name}\"");
        let failed = |error| RuleError::expression(rule, self.relation, &key, text, error);
        let expression = Expression::parse(text, &columns).map_err(failed)?;
        let is_masked =
            |&&column: &&usize| self.decisions.columns.get(column).is_some_and(|column| column.mask.is_some());
        if let Some(&column) = expression.columns().iter().find(is_masked) {
            let what =
                format!("{key}: column \"{}\" is masked, and its value would be seen here", self.columns[column].0);
            return self.refuse(rule, what, "leave it out of the expression");
        }
        self.of_expression(rule, (name, self.named(name).any(|column| column.is_identity)), text, expression)
    }

    /// `is_key` where it takes the place of a column of the replica identity.
    fn of_expression(
        &self,
        rule: &Rule,
        (name, is_key): (&str, bool),
        text: &str,
        expression: Expression,
    ) -> Outcome<(Oid, Output)> {
        let first = self.columns.len();
        let (reads, fields): (Vec<_>, Vec<_>) = expression.columns().iter().partition(|&&column| column < first);
        let is_stable = !fields.iter().any(|field| metadata::is_volatile(field - first));
        let is_identity = match self.relation.replica_identity {
            ReplicaIdentity::Full => is_stable,
            ReplicaIdentity::Default | ReplicaIdentity::Index | ReplicaIdentity::Nothing => is_key,
        };
        if is_identity && !(is_stable && reads.iter().all(|&column| self.is_known_of_old_rows(column))) {
            let what = format!("column \"{name}\": rows are found by it, and its value of an old row is not known");
            let mend = "compute it of columns of the replica identity alone, or give it another name";
            return self.refuse(rule, what, mend);
        }
        let said = text.to_owned();
        let type_oid = expression.type_oid();
        Ok((type_oid, Output { how: How::Compute(expression), column: None, is_identity, is_stable, reads, said }))
    }

    /// Where the rules name the key, rows are found by it and by nothing else.
    fn mark_key(&self, columns: &mut [Column], outputs: &mut [Output]) -> Outcome<()> {
        let Some((rule, key)) = self.decisions.key else { return Ok(()) };
        if let Some(unknown) = key.iter().find(|name| !columns.iter().any(|column| column.name == **name)) {
            let what = format!("key: the target gets no column \"{unknown}\"");
            return self.refuse(rule, what, "name columns as they are called on the target");
        }
        for (column, output) in columns.iter_mut().zip(outputs) {
            let is_key = key.contains(&column.name);
            let is_known = output.is_stable && output.reads.iter().all(|&column| self.is_known_of_old_rows(column));
            if is_key && !is_known {
                let what =
                    format!("key: the value that column \"{}\" had is not known of updates and deletes", column.name);
                let mend =
                    format!("on the primary: ALTER TABLE {} REPLICA IDENTITY FULL; or leave it out", self.relation);
                return self.refuse(rule, what, mend);
            }
            (column.is_identity, output.is_identity) = (is_key, is_key);
        }
        Ok(())
    }

    fn check_soft_delete(&self, outputs: &[Output]) -> Outcome<()> {
        let Some((rule, ())) = self.decisions.soft_delete else { return Ok(()) };
        let is_found = self.relation.replica_identity != ReplicaIdentity::Full || self.decisions.key.is_some();
        if !is_found || !outputs.iter().any(|output| output.is_identity) {
            let mend = "name the columns by which rows are found on the target, such as key = [\"id\"]";
            return self.refuse(rule, "soft_delete: there is no key by which a row is found", mend);
        }
        let says = |output: &Output| {
            matches!(&output.how, How::Compute(_))
                && !output.is_stable
                && output.reads.is_empty()
                && !output.is_identity
        };
        if !outputs.iter().any(says) {
            let mend = "add, for example, set = { op = \"$op\" }, which is 'D' for a row that is deleted";
            return self.refuse(rule, "soft_delete: no column would say that a row is deleted", mend);
        }
        Ok(())
    }

    fn target(&self, columns: Vec<Column>, outputs: &[Output]) -> Outcome<Relation> {
        let Decisions { schema, table, key, .. } = self.decisions;
        let Relation { id, version, namespace, name, replica_identity, .. } = self.relation;
        let renamed = |decision: &Option<(&Rule, &crate::config::Renaming)>, name: &str| {
            decision.map_or_else(|| name.to_owned(), |(_, renaming)| renaming.apply(name))
        };
        let (namespace, name) = (renamed(schema, namespace), renamed(table, name));
        if let Some((rule, _)) = (*schema).or(*table)
            && (namespace.is_empty() || name.is_empty())
        {
            return self.refuse(rule, "the new name of the table or its schema is empty", "correct the rule");
        }
        let replica_identity = match (key, replica_identity) {
            (Some(_), ReplicaIdentity::Full | ReplicaIdentity::Default | ReplicaIdentity::Index) => {
                ReplicaIdentity::Index
            }
            (_, other) => *other,
        };
        let keys = self.keys(outputs);
        let renamed_from = Some((self.relation.namespace.clone(), self.relation.name.clone()));
        Ok(Relation { id: *id, version: *version, namespace, name, renamed_from, replica_identity, columns, keys })
    }

    fn keys(&self, outputs: &[Output]) -> Keys {
        let keeps_apart = |position: usize| {
            let of_it = |output: &&Output| output.is_identity && output.reads == [position];
            outputs.iter().filter(of_it).any(|output| match &output.how {
                How::Cell(_) => true,
                How::Mask { .. } => self.decisions.columns[position].mask.is_some_and(|(_, mask)| mask.keeps_apart()),
                How::Compute(_) | How::Fixed { .. } => false,
            })
        };
        let mut of_source = (0..self.relation.columns.len()).filter(|&position| self.is_key(position));
        if self.decisions.soft_delete.is_some() {
            Keys::KeptDeleted
        } else if of_source.all(keeps_apart) {
            // Under FULL too: whole old rows tell of which row a change is.
            Keys::Apart
        } else {
            Keys::MayMeet
        }
    }
}

/// Its values are the bytes of their text, in binary too.
fn is_text(type_oid: Oid) -> bool {
    Type::from_oid(type_oid).is_some_and(Type::is_string)
}

/// In text and in binary. An expression without columns has a value, since it was folded.
fn constant_of(expression: &Expression) -> [Vec<u8>; 2] {
    let (mut text, mut binary) = (String::new(), Vec::new());
    if let Ok(value) = expression.evaluate(|_| Cell::Null) {
        value.to_text(&mut text);
        value.to_binary(&mut binary);
    }
    [text.into_bytes(), binary]
}
