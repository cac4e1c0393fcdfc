//! What `pg_restore` prints, cut into the SQL of its entries.
//!
//! Before each entry comes a comment, in which line breaks of names are replaced:
//!
//! ```text
//! --
//! -- Name: item; Type: TABLE; Schema: shop; Owner: -
//! --
//! ```
//!
//! The body of a function may hold lines that look the same. So a script is cut only where it has exactly as many of
//! them as there are entries, each where it is expected; else each entry has to be printed by itself.

use super::toc::Entry;

const HEADER: &str = "--\n-- Name: ";
const HEADER_END: &str = "\n--\n";
const END: &str = "\n--\n-- PostgreSQL database dump complete\n--";

/// The SQL of each entry, or `None` where the script cannot be told apart.
pub fn split(script: &str, entries: &[&Entry]) -> Option<Vec<String>> {
    let script = &script[..script.rfind(END)?];
    let starts: Vec<_> =
        script.match_indices(HEADER).map(|(start, _)| start).filter(|&at| begins_line(script, at)).collect();
    if starts.len() != entries.len() {
        return None;
    }
    let ends = starts.iter().skip(1).copied().chain([script.len()]);
    let parts = starts.iter().zip(ends).zip(entries).map(|((&start, end), entry)| {
        let (header, sql) = script[start + HEADER.len()..end].split_once(HEADER_END)?;
        is_header_of(header, entry).then(|| sql.trim().to_owned())
    });
    parts.collect()
}

/// The SQL of a script with one entry.
pub fn only(script: &str) -> Option<&str> {
    let script = &script[..script.rfind(END)?];
    let (_, script) = script.split_once(HEADER)?;
    Some(script.split_once(HEADER_END)?.1.trim())
}

fn begins_line(script: &str, at: usize) -> bool {
    at == 0 || script.as_bytes()[at - 1] == b'\n'
}

/// `header` is what comes after "Name: ".
fn is_header_of(header: &str, entry: &Entry) -> bool {
    let parts = || {
        let (rest, _owner) = header.rsplit_once("; Owner: ")?;
        let (rest, schema) = rest.rsplit_once("; Schema: ")?;
        let (name, kind) = rest.rsplit_once("; Type: ")?;
        Some(format!("{kind} {schema} {name} "))
    };
    parts().is_some_and(|label| entry.label.starts_with(&label))
}

#[cfg(test)]
mod tests {
    use super::super::toc;
    use super::*;

    const LIST: &str = "\
1; 1255 10 FUNCTION shop f() owner
2; 1259 11 TABLE shop T -- Name: x; y owner
";

    fn script(body: &str) -> String {
        format!(
            "--\n-- PostgreSQL database dump\n--\n\n\\restrict x\n\nSET lock_timeout = 0;\n\n\
             --\n-- Name: f(); Type: FUNCTION; Schema: shop; Owner: -\n--\n\n\
             CREATE FUNCTION f() AS $${body}$$;\n\n\n\
             --\n-- Name: T -- Name: x; y; Type: TABLE; Schema: shop; Owner: -\n--\n\n\
             CREATE TABLE t ();\n\n\n--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict x\n\n"
        )
    }

    #[test]
    fn the_sql_of_each_entry() {
        let entries = toc::parse(LIST).unwrap();
        let parts = split(&script("body"), &entries.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(parts, ["CREATE FUNCTION f() AS $$body$$;", "CREATE TABLE t ();"]);
    }

    #[test]
    fn a_body_that_looks_like_an_entry_is_not_cut() {
        let entries = toc::parse(LIST).unwrap();
        let entries: Vec<_> = entries.iter().collect();
        let faked = script("\n--\n-- Name: T -- Name: x; y; Type: TABLE; Schema: shop; Owner: -\n--\n\nDROP TABLE t;");
        assert_eq!(split(&faked, &entries), None);
        // Other entries than were asked for.
        assert_eq!(split(&script("body"), &[entries[1], entries[0]]), None);
        assert_eq!(split(&script("body"), &entries[..1]), None);
    }

    #[test]
    fn a_script_of_one_entry_is_taken_whole() {
        let body = "\n--\n-- Name: fake; Type: TABLE; Schema: shop; Owner: -\n--\n";
        let alone = format!(
            "\\restrict x\n\n--\n-- Name: f(); Type: FUNCTION; Schema: shop; Owner: -\n--\n\nAS $${body}{END}$$;\n\n\
             {END}\n\n\\unrestrict x\n"
        );
        assert_eq!(only(&alone), Some(format!("AS $${body}{END}$$;").as_str()));
        assert_eq!(only("nothing"), None);
    }
}
