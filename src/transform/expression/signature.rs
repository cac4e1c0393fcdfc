//! Which operator or function a name means for the types that it is given (`parse_oper.c`, `parse_func.c`).
//!
//! The rules are those of "Type Conversion" in PostgreSQL's documentation, chapters "Operators" and "Functions", over the
//! operators and functions that are known here.

use super::evaluate::{Compare, Comparison, Function};
use super::types::{Category, Type};

/// An operator or function for certain types.
#[derive(Clone, Debug)]
pub(super) struct Signature {
    pub name: &'static str,
    pub arguments: Vec<Type>,
    pub result: Type,
    pub action: Action,
}

impl Signature {
    /// Whether its result depends on the time zone in PostgreSQL, which then does not evaluate it beforehand.
    pub fn is_stable(&self) -> bool {
        self.arguments.contains(&Type::Timestamptz) && self.arguments.iter().any(|each| *each != Type::Timestamptz)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    Call(Function),
    Compare(Comparison, Compare),
    /// PostgreSQL has it, and it is refused here for this reason.
    Refused(&'static str),
}

/// Why none was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotChosen {
    /// None takes these types.
    None,
    /// Several do, and none is better than the others.
    Ambiguous,
}

/// The one of these signatures that PostgreSQL would take.
pub(super) fn choose<'s>(
    signatures: impl Iterator<Item = &'s Signature>,
    inputs: &[Type],
    is_operator: bool,
) -> Result<&'s Signature, NotChosen> {
    let mut candidates: Vec<&Signature> = signatures
        .filter(|signature| {
            signature.arguments.len() == inputs.len()
                && inputs.iter().zip(&signature.arguments).all(|(input, wanted)| input.casts_implicitly_to(*wanted))
        })
        .collect();
    if let Some(exact) = exact_match(&candidates, inputs, is_operator) {
        return Ok(exact);
    }
    let exact = |signature: &Signature| count(inputs, signature, |input, wanted| input == wanted);
    keep_best(&mut candidates, exact);
    let preferred = |signature: &Signature| {
        count(inputs, signature, |input, wanted| {
            input != Type::Unknown
                && (input == wanted || wanted.category() == input.category() && wanted.is_preferred())
        })
    };
    keep_best(&mut candidates, preferred);
    if candidates.len() > 1 && inputs.contains(&Type::Unknown) {
        keep_categories_of_literals(&mut candidates, inputs);
        keep_type_of_others(&mut candidates, inputs);
    }
    match candidates.as_slice() {
        [] => Err(NotChosen::None),
        [chosen] => Ok(chosen),
        _ => Err(NotChosen::Ambiguous),
    }
}

/// A literal beside an operator is first taken to have the type of the other side.
fn exact_match<'s>(candidates: &[&'s Signature], inputs: &[Type], is_operator: bool) -> Option<&'s Signature> {
    let assumed: Vec<Type> = match inputs {
        [Type::Unknown, known] if is_operator => vec![*known, *known],
        [known, Type::Unknown] if is_operator => vec![*known, *known],
        _ => inputs.to_vec(),
    };
    candidates.iter().find(|candidate| candidate.arguments == assumed).copied()
}

fn count(inputs: &[Type], signature: &Signature, counts: impl Fn(Type, Type) -> bool) -> usize {
    inputs.iter().zip(&signature.arguments).filter(|(input, wanted)| counts(**input, **wanted)).count()
}

fn keep_best(candidates: &mut Vec<&Signature>, score: impl Fn(&Signature) -> usize) {
    let best = candidates.iter().map(|candidate| score(candidate)).max().unwrap_or(0);
    candidates.retain(|candidate| score(candidate) == best);
}

/// A literal is a string if any candidate takes a string there, else of the one category that all of them take.
fn keep_categories_of_literals(candidates: &mut Vec<&Signature>, inputs: &[Type]) {
    let mut wanted = Vec::new();
    for (position, _) in inputs.iter().enumerate().filter(|(_, input)| **input == Type::Unknown) {
        let all: Vec<Type> = candidates.iter().map(|candidate| candidate.arguments[position]).collect();
        let category = match all.iter().any(|each| each.is_string()) {
            true => Category::String,
            false if all.iter().all(|each| each.category() == all[0].category()) => all[0].category(),
            false => return,
        };
        let has_preferred = all.iter().any(|each| each.category() == category && each.is_preferred());
        wanted.push((position, category, has_preferred));
    }
    let fits = |candidate: &&Signature| {
        wanted.iter().all(|(position, category, has_preferred)| {
            let takes = candidate.arguments[*position];
            takes.category() == *category && (!has_preferred || takes.is_preferred())
        })
    };
    if candidates.iter().any(fits) {
        candidates.retain(fits);
    }
}

/// Where all that is known has one type, literals are taken to have it too.
fn keep_type_of_others(candidates: &mut Vec<&Signature>, inputs: &[Type]) {
    let mut known = inputs.iter().filter(|input| **input != Type::Unknown);
    let Some(first) = known.next().filter(|first| known.all(|other| other == *first)) else { return };
    let fits = |candidate: &&Signature| candidate.arguments.iter().all(|wanted| first.casts_implicitly_to(*wanted));
    if candidates.len() > 1 && candidates.iter().filter(|candidate| fits(candidate)).count() == 1 {
        candidates.retain(fits);
    }
}
